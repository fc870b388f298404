"""The table of rates, and how it is combined with measured rates and those that a user sets."""

from __future__ import annotations

import pytest
from plan_samples import make_site, make_workload

from pipelines.errors import ConfigError
from service.planning.machine import match_accelerator
from service.planning.rates import (
    ACCELERATORS,
    Measurement,
    RateSpec,
    compute_pcie_bytes_per_second,
    compute_roofline,
    estimate_step_rate,
    list_rates,
)


def test_pci_express() -> None:
    """PCI-SIG: 15.75, 31.5 and 63.0 GB/s in each direction of 16 lanes."""
    rates = [compute_pcie_bytes_per_second(generation) / 1e9 for generation in (3, 4, 5)]
    assert rates == pytest.approx([15.75, 31.5, 63.0], rel=1e-3)


def test_the_roofline_is_bound_by_operations_or_by_memory() -> None:
    h100 = ACCELERATORS["h100"]
    # 6 passes over 10 million values of 2 bytes take 36 us, 3 GFLOP take 3 us.
    assert compute_roofline(make_workload(), h100) == pytest.approx(3.35e12 / 120e6)
    # A hundredth of the values: 3 GFLOP at 989 TFLOP/s take longer.
    figures = make_workload().network
    small = make_workload(network=type(figures)(**{**vars(figures), "activation_values": 100_000}))
    assert compute_roofline(small, h100) == pytest.approx(989e12 / 3e9)


@pytest.mark.parametrize(
    ("gpu", "value_bytes", "measured"),
    # One GPU with XLA, NVIDIA/DeepLearningExamples, TensorFlow/Classification/ConvNets/resnet50v1.5.
    [("a100-40gb", 2, 2375), ("v100", 2, 1270), ("a100-40gb", 4, 909), ("v100", 4, 412)],
)
def test_published_rates_of_resnet50(gpu: str, value_bytes: int, measured: float) -> None:
    """Figures of `resnet50` at 224x224, which another test compares with the network."""
    figures = make_workload().network
    resnet = type(figures)(
        **{**vars(figures), "training_operations": 24_299_077_632, "activation_values": 40_894_932}
    )
    workload = make_workload(network=resnet, value_bytes=value_bytes)
    predicted = estimate_step_rate(workload, ACCELERATORS[gpu])
    assert predicted == pytest.approx(measured, rel=0.16)


def test_rates_are_set_measured_or_from_the_table() -> None:
    measured = {"step": Measurement(10.0, 0.1), "decode": Measurement(20.0, 0.05)}
    rates = list_rates(make_workload(), make_site(), measured, RateSpec(step=11.0, read=2.5))
    assert (rates["step"].value, rates["step"].source) == (11.0, "as set")
    assert (rates["decode"].value, rates["decode"].cpu_seconds) == (20.0, 0.05)
    assert (rates["read"].value, rates["read"].unit) == (2.5, "GB/s per host")
    assert rates["feed"].source.startswith("one Python process")


def test_the_slowest_link_bounds_the_all_reduce() -> None:
    """NVLink within a host, 450 GB/s; between hosts, their adapters: 50 GB/s for each GPU."""
    workload = make_workload()
    within = list_rates(workload, make_site(hosts=1, gpus=8), {}, RateSpec())["all_reduce"]
    between = list_rates(workload, make_site(hosts=2, gpus=8), {}, RateSpec())["all_reduce"]
    assert (within.value, between.value) == (450.0, 400.0)


@pytest.mark.parametrize(
    ("gpu", "gigabytes"), [("h100", 400 / 8), ("a100", 200 / 8), ("l4", 25 / 8), (None, 25 / 8)]
)
def test_networks_are_sold_in_bits(gpu: str | None, gigabytes: float) -> None:
    site = make_site(accelerator=gpu)
    assert list_rates(make_workload(), site, {}, RateSpec(step=1.0))["network"].value == gigabytes


@pytest.mark.parametrize(("storage", "is_shared"), [("s3", False), ("gs", True), ("nfs", True)])
def test_hosts_share_the_limit_of_a_project_or_a_server(storage: str, is_shared: bool) -> None:
    unit = list_rates(make_workload(), make_site(storage=storage), {}, RateSpec())["store"].unit
    assert unit == ("GB/s for all hosts" if is_shared else "GB/s per host")


def test_decoding_on_the_gpus_and_on_the_cores() -> None:
    """7 of 5 engines of an A100, 110 of 100 kB: 7,700 images/s for each of 4 GPUs. 1 ms on each core else."""
    on_gpus = list_rates(make_workload(decodes_on_gpu=True), make_site(), {}, RateSpec())["decode"]
    assert on_gpus.value == pytest.approx(4 * 7_700)
    on_cores = list_rates(make_workload(), make_site(), {}, RateSpec())["decode"]
    assert on_cores.value == pytest.approx(16 / 0.99e-3)


@pytest.mark.parametrize(
    ("changes", "read", "write"),
    [
        ({"gpus": 8}, 8 * 6.5, 8 * 3.5),  # DGX H100: eight drives of 3.84 TB
        ({"gpus": 1}, 6.5, 3.5),
        ({"gpus": 8, "accelerator": "a100-40gb"}, 4 * 6.5, 4 * 3.5),  # DGX A100 of 320 GB: four of them
        ({"gpus": 1, "accelerator": "a100-40gb"}, 6.5, 3.5),
        ({"gpus": 8, "accelerator": "v100"}, 4 * 0.5, 4 * 0.5),  # DGX-1: four with SATA
        ({"gpus": 8, "is_this_machine": True}, 6.5, 3.5),
        ({"gpus": 0, "accelerator": None}, 6.5, 3.5),
    ],
)
def test_a_host_reads_and_writes_with_all_of_its_drives(
    changes: dict[str, object], read: float, write: float
) -> None:
    rates = list_rates(make_workload(), make_site(**changes), {}, RateSpec(step=1.0))
    assert (rates["read"].value, rates["cache_fill"].value) == (read, write)


def test_rates_without_a_document_are_called_estimates() -> None:
    estimated = {
        (gpu, name)
        for gpu in ("a100", "h100")
        for name, rate in list_rates(
            make_workload(decodes_on_gpu=True), make_site(accelerator=gpu), {}, RateSpec()
        ).items()
        if rate.source.startswith("estimate: ")
    }
    # NVIDIA has measured the JPEG engines of an A100 alone.
    both = {(gpu, name) for gpu in ("a100", "h100") for name in ("cache_fill", "read", "step")}
    assert estimated == both | {("h100", "decode")}


def test_a_step_of_unknown_rate_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"rates\.step=IMAGES_PER_SECOND"):
        list_rates(make_workload(), make_site(accelerator=None), {}, RateSpec())


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("Tesla V100-SXM2-16GB", "v100"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40S", None),
    ],
)
def test_names_of_drivers(name: str, key: str | None) -> None:
    assert match_accelerator(name) == key
