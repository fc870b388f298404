"""The arithmetic of a plan, against numbers computed by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from plan_samples import make_rates, make_site, make_workload

from service.planning.plan import make_plan
from service.planning.stages import Roofline, build_roofline, compute_all_reduce_bytes, compute_fetches
from service.planning.workload import Workload


def build(workload: Workload | None = None, fetches: float = 2.0, **rates: float) -> Roofline:
    return build_roofline(workload or make_workload(), make_site(), make_rates(**rates), fetches)


def test_what_each_stage_delivers() -> None:
    delivered = {stage.name: stage.images_per_second for stage in build().stages}
    assert delivered == pytest.approx(
        {
            "store": 2 * 1e9 / 100_000,  # per host: 2 of them, 100 kB per image
            "network": 2 * 2e9 / 100_000,
            "cache fill": 2 * 3e9 / 100_000,
            "read": 2 * 4e9 / 100_000,
            "decode": 2 * 5_000,
            "feed": 2 * 6_000,
            "copy to device": 8 * 3e9 / 150_000,  # per GPU: 8 of them, decoded pixels
            "step": 8 * 100,
            # 2 * 7/8 * 4 bytes of 1e6 gradients take 1 ms at 7 GB/s, once for 1,000 images
            "all-reduce": 1000 / 0.001,
        }
    )


def test_each_host_fetches_every_image_without_lanes() -> None:
    """The step trains 800 images/s, less what the all-reduce takes; the store must deliver twice as many."""
    roofline = build()
    step_seconds = 1000 / 800
    required = 1000 / (step_seconds + 0.001)
    assert roofline.required == pytest.approx(required)
    passes = {stage.name: stage.passes for stage in roofline.stages}
    assert [passes[name] for name in ("store", "network", "cache fill", "read", "decode")] == [2, 2, 2, 1, 1]


@pytest.mark.parametrize(
    ("slow", "rate", "name", "images_per_second"),
    [
        ("decode", 200.0, "decode", 2 * 200),
        ("feed", 300.0, "feed", 2 * 300),
        ("store", 0.02, "store", 2 * 0.02e9 / 100_000 / 2),  # each image is fetched twice
        ("to_device", 0.01, "copy to device", 8 * 0.01e9 / 150_000),
        ("step", 50.0, "step", 1000 / (1000 / 400 + 0.001)),
        ("all_reduce", 0.007 / 10, "all-reduce", 1000 / (1000 / 800 + 10)),
    ],
)
def test_the_slowest_stage_is_the_bottleneck(
    slow: str, rate: float, name: str, images_per_second: float
) -> None:
    roofline = build(**{slow: rate})
    assert roofline.bottleneck == name
    assert roofline.images_per_second == pytest.approx(images_per_second)


def test_cores_that_stages_share_are_a_bottleneck_of_their_own() -> None:
    """Two stages of 1,000 images/s each, with 3 ms of CPU time for an image, on 2 cores: 333 images/s."""
    rates = make_rates(decode=1000.0, step=1000.0)
    for name in ("decode", "step"):
        rates[name] = replace(rates[name], cpu_seconds=0.003)
    site = make_site(hosts=1, gpus=0, cores=2)
    roofline = build_roofline(make_workload(is_remote=False), site, rates, 0.0)
    assert roofline.bottleneck == "CPU cores"
    assert roofline.images_per_second == pytest.approx(2 / 0.006)
    assert roofline.cpu_seconds_per_image == pytest.approx(0.006)
    two_hosts = build_roofline(make_workload(), make_site(hosts=2, gpus=0, cores=2), rates, 0.0)
    assert two_hosts.images_per_second == pytest.approx(4 / 0.006)
    # An evaluation takes a third of the step.
    plan = make_plan(make_workload(is_remote=False, validation_images=1000), site, rates)
    assert plan.duration.evaluation_seconds == pytest.approx(1000 * 0.004 / 2)


def test_all_reduce_in_a_ring() -> None:
    """Nothing with one replica, the gradients once with two, twice with very many."""
    workload = make_workload()
    gradients = 4_000_000
    sent = [compute_all_reduce_bytes(workload, replicas) for replicas in (1, 2, 8, 10**9)]
    assert sent == pytest.approx([0, gradients, 1.75 * gradients, 2 * gradients])


def test_accumulated_batches_are_summed_once() -> None:
    (reduce,) = [stage for stage in build(make_workload(accumulate=4)).stages if stage.name == "all-reduce"]
    assert reduce.images_per_second == pytest.approx(4000 / 0.001)


@pytest.mark.parametrize(
    ("changes", "sent"),
    [
        ({"cache": "none"}, 150_000),
        ({"cache": "none", "decodes_on_gpu": True}, 100_000),
        ({"cache": "host"}, 150_000),
        ({"cache": "host", "decodes_on_gpu": True}, 150_000),
        ({"cache": "device"}, None),
    ],
)
def test_what_is_copied_to_the_device(changes: dict[str, object], sent: int | None) -> None:
    copies = [s for s in build(make_workload(**changes)).stages if s.name == "copy to device"]
    expected = [] if sent is None else [8 * 3e9 / sent]
    assert [stage.images_per_second for stage in copies] == pytest.approx(expected)


def test_cached_images_are_fetched_and_decoded_once_by_each_host() -> None:
    plan = make_plan(make_workload(cache="host", validation_images=1000), make_site(), make_rates())
    assert next(stage.name for stage in plan.roofline.stages) == "feed"
    assert plan.fill_roofline is not None
    passes = {stage.name: stage.passes for stage in plan.fill_roofline.stages}
    assert passes == {"store": 2, "network": 2, "cache fill": 2, "read": 2, "decode": 2}
    # 11,000 images, 5,000 images/s on each host, each of which decodes all of them
    assert plan.duration.fill_seconds == pytest.approx(11_000 / 5_000)
    epochs = 2 * 10 * (1000 / 800 + 0.001)
    evaluations = 2 * 1_000 / (3 * 800)
    assert plan.duration.total_seconds == pytest.approx(11_000 / 5_000 + epochs + evaluations)


def test_fetches_of_hosts_whose_disk_holds_nothing() -> None:
    site = make_site()
    assert compute_fetches(make_workload(epochs=3), site, 1) == [2, 2, 2]
    # With lanes, each host fetches its half of the rows; a shard at the border is fetched by both.
    assert compute_fetches(make_workload(epochs=2), site, 2) == pytest.approx([1.1, 1.1])


def test_fetches_of_hosts_whose_disk_holds_the_set() -> None:
    site = make_site(disk_bytes=10**9)
    assert compute_fetches(make_workload(epochs=3), site, 1) == [2, 0, 0]
    # With lanes, a host has seen half of the shards that it needs in the second epoch.
    assert compute_fetches(make_workload(epochs=3), site, 2) == pytest.approx([1.1, 0.55, 0.275])
    assert compute_fetches(make_workload(epochs=3, is_remote=False), site, 1) == [0, 0, 0]


def test_duration_of_all_epochs_and_evaluations() -> None:
    """Epochs are padded to whole batches; an evaluation takes the forward pass, a third of the operations."""
    workload = make_workload(train_images=9_500, validation_images=800, epochs=5, evaluate_every=2)
    rates = make_rates()
    rates["step"] = replace(rates["step"], cpu_seconds=1e-6)
    plan = make_plan(workload, make_site(), rates)
    epoch = 10 * (1000 / 800 + 0.001)
    evaluation = 800 / (3 * 800)
    assert plan.duration.epoch_seconds == pytest.approx(epoch)
    assert plan.duration.epoch_cpu_seconds == pytest.approx(10 * 1000 * 1e-6)
    assert plan.duration.evaluation_seconds == pytest.approx(evaluation)
    assert plan.duration.total_seconds == pytest.approx(5 * epoch + 3 * evaluation)
    assert plan.hours == pytest.approx((5 * epoch + 3 * evaluation) / 3600)


def test_later_epochs_are_faster_if_the_disk_holds_the_set() -> None:
    workload = make_workload(epochs=3, validation_images=1000)
    plan = make_plan(workload, make_site(disk_bytes=2 * 10**9), make_rates(store=0.02))
    first = 10_000 / (0.02e9 * 2 / 100_000 / 2)
    later = 10 * (1000 / 800 + 0.001)
    assert plan.bottleneck == "store"
    assert plan.later_roofline.bottleneck == "step"
    assert plan.duration.evaluation_seconds == pytest.approx(1000 / (3 * 800))
    assert plan.duration.total_seconds == pytest.approx(first + 2 * later + 3 * 1000 / (3 * 800))


def test_a_shared_store_does_not_grow_with_the_hosts() -> None:
    rates = make_rates()
    rates["store"] = replace(rates["store"], unit="GB/s for all hosts")
    (store,) = [
        stage
        for stage in build_roofline(make_workload(), make_site(), rates, 2.0).stages
        if stage.name == "store"
    ]
    assert store.images_per_second == pytest.approx(1e9 / 100_000)
