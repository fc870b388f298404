"""What chips, disks, networks and stores can deliver, with the source of every figure.

Data sheets state peaks. What software reaches of them is in `STEP_EFFICIENCY`, and in the rates that are
measured on this machine (`service.planning.measure`). A rate that no document or measurement states is an
estimate, and its source begins with this word. Every rate can be set: `rates.decode=9000`.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.errors import ConfigError, suggest
from pipelines.settings import Ratio, Spec
from service.planning.workload import Site, Workload

GB = 1e9
GBIT = 1e9 / 8  # bytes
IMAGES_PER_HOST = "images/s per host"
IMAGES_PER_GPU = "images/s per GPU"
GB_PER_HOST = "GB/s per host"
GB_PER_GPU = "GB/s per GPU"
GB_SHARED = "GB/s for all hosts"

# Transfers per second of one lane, by generation: PCI-SIG, PCI Express Base Specification 5.0.
PCIE_TRANSFERS = {3: 8e9, 4: 16e9, 5: 32e9}


@dataclass(frozen=True)
class Accelerator:
    """A GPU, and its share of the host that its vendor sells it in. All rates are those of one direction.

    Attributes:
        tensor_flops: Peak of dense products in bfloat16 or float16, operations per second.
        float32_flops: Peak in float32; with TF32, which TensorFlow uses by default, where the chip has it.
        memory_bytes: Size of the memory.
        memory_bytes_per_second: Bandwidth of the memory.
        pcie: Generation of PCI Express, 16 lanes.
        nvlink_bytes_per_second: Bandwidth to the other GPUs of the host; 0 without NVLink.
        fabric_bytes_per_second: Bandwidth of the network adapter between hosts, for each GPU.
        network_bytes_per_second: Bandwidth of the host to its storage.
        jpeg_engines: Number of hardware JPEG decoders.
        cores: CPU cores of the host for each GPU.
        ram_bytes: RAM of the host for each GPU.
        disk_bytes: Local disk of the host for each GPU.
        drives: Local drives of the host for each GPU; a half if two GPUs share one.
        drive: Kind of these drives, a name in `DRIVES`.
        source: Data sheet of the GPU.
        host: The host, whose data sheet has the figures of cores, RAM, disk and network.
    """

    tensor_flops: float
    float32_flops: float
    memory_bytes: float
    memory_bytes_per_second: float
    pcie: int
    nvlink_bytes_per_second: float
    fabric_bytes_per_second: float
    network_bytes_per_second: float
    jpeg_engines: int
    cores: int
    ram_bytes: float
    disk_bytes: float
    drives: float
    drive: str
    source: str
    host: str


@dataclass(frozen=True)
class Drive:
    """A local drive that keeps shards. Several of them in a host are striped.

    Attributes:
        read_gb_per_second: Rate of reading large files.
        write_gb_per_second: Rate of writing large files.
        source: Where the rates come from.
    """

    read_gb_per_second: float
    write_gb_per_second: float
    source: str


# The hosts' data sheets name the capacity of their drives, not their speed.
DRIVES = {
    "nvme": Drive(6.5, 3.5, "estimate: {drives} as fast as Samsung's PM9A3 (2020), PCIe 4.0 x4"),
    "cloud": Drive(0.66, 0.35, "estimate: {drives} as fast as a local SSD of 375 GB of Google Cloud"),
    "sata": Drive(0.5, 0.5, "estimate: {drives} with SATA, 6 Gbit/s"),
}
DEFAULT_DRIVE = "nvme"

ACCELERATORS = {
    "t4": Accelerator(
        tensor_flops=65e12,
        float32_flops=8.1e12,
        memory_bytes=16 * GB,
        memory_bytes_per_second=320 * GB,
        pcie=3,
        nvlink_bytes_per_second=0,
        fabric_bytes_per_second=25 * GBIT,
        network_bytes_per_second=25 * GBIT,
        jpeg_engines=0,
        cores=8,
        ram_bytes=32 * GB,
        disk_bytes=225 * GB,
        drives=1,
        drive="cloud",
        source="NVIDIA T4 data sheet (2019)",
        host="AWS g4dn.2xlarge",
    ),
    "v100": Accelerator(
        tensor_flops=125e12,
        float32_flops=15.7e12,
        memory_bytes=16 * GB,
        memory_bytes_per_second=900 * GB,
        pcie=3,
        nvlink_bytes_per_second=150 * GB,
        fabric_bytes_per_second=50 * GBIT,
        network_bytes_per_second=100 * GBIT,
        jpeg_engines=0,
        cores=5,
        ram_bytes=64 * GB,
        disk_bytes=960 * GB,
        drives=0.5,
        drive="sata",
        source="NVIDIA V100 SXM2 data sheet (2017)",
        host="DGX-1",
    ),
    "a100-40gb": Accelerator(
        tensor_flops=312e12,
        float32_flops=156e12,
        memory_bytes=40 * GB,
        memory_bytes_per_second=1555 * GB,
        pcie=4,
        nvlink_bytes_per_second=300 * GB,
        fabric_bytes_per_second=200 * GBIT,
        network_bytes_per_second=200 * GBIT,
        jpeg_engines=5,
        cores=16,
        ram_bytes=128 * GB,
        disk_bytes=1920 * GB,
        drives=0.5,
        drive="nvme",
        source="NVIDIA A100 SXM4 data sheet (2020)",
        host="DGX A100",
    ),
    "a100": Accelerator(
        tensor_flops=312e12,
        float32_flops=156e12,
        memory_bytes=80 * GB,
        memory_bytes_per_second=2039 * GB,
        pcie=4,
        nvlink_bytes_per_second=300 * GB,
        fabric_bytes_per_second=200 * GBIT,
        network_bytes_per_second=200 * GBIT,
        jpeg_engines=5,
        cores=16,
        ram_bytes=256 * GB,
        disk_bytes=3840 * GB,
        drives=1,
        drive="nvme",
        source="NVIDIA A100 80GB SXM4 data sheet (2021)",
        host="DGX A100",
    ),
    "l4": Accelerator(
        tensor_flops=121e12,
        float32_flops=60e12,
        memory_bytes=24 * GB,
        memory_bytes_per_second=300 * GB,
        pcie=4,
        nvlink_bytes_per_second=0,
        fabric_bytes_per_second=25 * GBIT,
        network_bytes_per_second=25 * GBIT,
        jpeg_engines=4,
        cores=12,
        ram_bytes=48 * GB,
        disk_bytes=375 * GB,
        drives=1,
        drive="cloud",
        source="NVIDIA L4 data sheet (2023), without sparsity",
        host="Google Cloud g2-standard-12",
    ),
    "h100": Accelerator(
        tensor_flops=989e12,
        float32_flops=494e12,
        memory_bytes=80 * GB,
        memory_bytes_per_second=3350 * GB,
        pcie=5,
        nvlink_bytes_per_second=450 * GB,
        fabric_bytes_per_second=400 * GBIT,
        network_bytes_per_second=400 * GBIT,
        jpeg_engines=7,
        cores=14,
        ram_bytes=256 * GB,
        disk_bytes=3840 * GB,
        drives=1,
        drive="nvme",
        source="NVIDIA H100 SXM5 data sheet (2023), without sparsity",
        host="DGX H100",
    ),
    "h200": Accelerator(
        tensor_flops=989e12,
        float32_flops=494e12,
        memory_bytes=141 * GB,
        memory_bytes_per_second=4800 * GB,
        pcie=5,
        nvlink_bytes_per_second=450 * GB,
        fabric_bytes_per_second=400 * GBIT,
        network_bytes_per_second=400 * GBIT,
        jpeg_engines=7,
        cores=14,
        ram_bytes=256 * GB,
        disk_bytes=3840 * GB,
        drives=1,
        drive="nvme",
        source="NVIDIA H200 SXM data sheet (2024), without sparsity",
        host="DGX H200",
    ),
}


@dataclass(frozen=True)
class Storage:
    """Where shards are kept.

    Attributes:
        gb_per_second: What it delivers to each host, or to all of them if it is shared.
        is_shared: Whether all hosts share this rate.
        is_remote: Whether shards are fetched from it into a cache on local disk.
        source: Documentation of the limit.
    """

    gb_per_second: float
    is_shared: bool
    is_remote: bool
    source: str


STORAGE = {
    "disk": Storage(DRIVES[DEFAULT_DRIVE].read_gb_per_second, False, False, "local drives of the host"),
    "nfs": Storage(1.25, True, False, "estimate: one server with 10 Gbit/s"),
    "s3": Storage(12.5, False, True, "AWS (2018): up to 100 Gbit/s between an instance and S3 in its region"),
    "gs": Storage(25.0, True, True, "Google Cloud: default quota of 200 Gbit/s for a region of a project"),
    "http": Storage(1.25, True, True, "estimate: one server with 10 Gbit/s"),
    "az": Storage(6.25, True, True, "Azure: lowest default limit of a storage account, 50 Gbit/s"),
}

# A step moves the output of every operation through the memory of the GPU about six times, if nothing is
# fused: written once and read once in the forward pass; in the backward pass, the gradient of the output is
# read twice (for the gradients of inputs and weights), the input is read again, and its gradient is written.
ACTIVATION_PASSES = 6
# Share of the roofline (Williams et al., 2009) that ResNet-50 reaches at 224x224 with XLA: 0.57 to 0.75 on
# V100, A100 and H100, in float32 and mixed precision. See README.md, "How far the rates can be trusted".
STEP_EFFICIENCY = 0.65
STEP_SOURCE = "estimate: 0.65 of the roofline, as ResNet-50 reaches (service/planning/README.md)"
# Networks of fewer operations for an image and training step reached 0.2 of it on an H100.
SMALL_NETWORK_OPERATIONS = 5e9

# CPU time to decode and check a JPEG: 0.443 ms for photos of 24 kB and 1.07 ms for photos of 111 kB, two
# types of cores; tests/benchmarks/README.md, "Dataset health" and "Shards".
DECODE_SECONDS_PER_IMAGE = 0.27e-3
DECODE_SECONDS_PER_BYTE = 7.2e-9
DECODE_SOURCE = "estimate: {cores} cores, 0.27 ms and 7.2 us per kB on each (tests/benchmarks/README.md)"
RESIZE_SECONDS_PER_IMAGE = 0.05e-3
RESIZE_SOURCE = "estimate: {cores} cores, stored pixels are resized in 0.05 ms on each"
# One A100, five engines, ImageNet: NVIDIA's blog "Loading Data Fast with DALI and the New Hardware JPEG
# Decoder in NVIDIA A100 GPUs" (2020), the hardware decoder alone.
JPEG_ENGINES_OF_A100 = 5
JPEG_ENGINE_BYTES_PER_SECOND = 5000 / JPEG_ENGINES_OF_A100 * 110e3
JPEG_ENGINE_SOURCE = "{engines} JPEG engines of an A100, 5,000 photos/s of 110 kB (NVIDIA, 2020)"
OTHER_JPEG_ENGINE_SOURCE = (
    "estimate: {engines} JPEG engines on each GPU, as fast as those of an A100 (NVIDIA, 2020)"
)
# Python takes rows from the reader, checks them and hands them over, on one thread of each host.
FEED_IMAGES_PER_SECOND = {True: 18_000.0, False: 13_600.0}
FEED_SOURCE = "one Python process of a host, 110 kB per image, warm (service/planning/README.md)"


class RateSpec(Spec):
    """Rates that replace those of the table and those that are measured.

    Attributes:
        store: What the store delivers, GB/s per host, or for all hosts if they share it (nfs, gs, az).
        network: What a host receives from it, GB/s.
        cache_fill: Writing shards into the cache on local disk, GB/s per host.
        read: Reading shards from local disk, GB/s per host.
        decode: Decoding and resizing, images/s per host.
        feed: Reading rows, checking and handing them over in Python, images/s per host.
        to_device: Copies of images to the GPU, GB/s per GPU.
        step: Forward and backward pass and update, images/s per GPU.
        all_reduce: Bus bandwidth of the sum over all replicas, GB/s per GPU.
    """

    store: Ratio | None = None
    network: Ratio | None = None
    cache_fill: Ratio | None = None
    read: Ratio | None = None
    decode: Ratio | None = None
    feed: Ratio | None = None
    to_device: Ratio | None = None
    step: Ratio | None = None
    all_reduce: Ratio | None = None


@dataclass(frozen=True)
class Rate:
    """What one stage can deliver.

    Attributes:
        value: The rate in its unit.
        unit: One of the units of this module.
        source: Where the rate comes from: `measured here`, `as set`, or a document.
        cpu_seconds: CPU time per image where it was measured; 0 where the CPU is not what limits it.
    """

    value: float
    unit: str
    source: str
    cpu_seconds: float = 0.0


@dataclass(frozen=True)
class Measurement:
    """A rate of this machine.

    Attributes:
        images_per_second: The rate, with nothing else running.
        cpu_seconds: CPU time of all threads for one image.
    """

    images_per_second: float
    cpu_seconds: float


MEASURED = "measured here"
AS_SET = "as set"


def find_accelerator(name: str) -> Accelerator:
    """Returns a GPU of the table.

    Raises:
        ConfigError: The table has no GPU of that name.
    """
    if name not in ACCELERATORS:
        raise ConfigError(
            "the name of a GPU", f"gpu={name}", f"{suggest(name, ACCELERATORS)}, or set rates.step and others"
        )
    return ACCELERATORS[name]


def find_storage(name: str) -> Storage:
    """Returns a kind of storage of the table.

    Raises:
        ConfigError: The table has no storage of that name.
    """
    if name not in STORAGE:
        raise ConfigError("a kind of storage", f"storage={name}", suggest(name, STORAGE))
    return STORAGE[name]


def list_rates(
    workload: Workload, site: Site, measured: dict[str, Measurement], changes: RateSpec
) -> dict[str, Rate]:
    """Lists what every stage can deliver: as set, else as measured, else from the table.

    Args:
        workload: Images, epochs, network and settings of the training.
        site: Hosts, GPUs and storage that the training runs on.
        measured: Rates of this machine by stage: `decode`, `feed`, `step`.
        changes: Rates that the user sets.

    Raises:
        ConfigError: The rate of a stage is neither known nor measured nor set.
    """
    rates = _list_input_rates(workload, site) | _list_device_rates(workload, site)
    for name, measurement in measured.items():
        unit = IMAGES_PER_GPU if name == "step" else IMAGES_PER_HOST
        rates[name] = Rate(measurement.images_per_second, unit, MEASURED, measurement.cpu_seconds)
    for name, value in changes.model_dump(exclude_none=True).items():
        rates[name] = Rate(value, rates[name].unit if name in rates else IMAGES_PER_GPU, AS_SET)
    if "step" not in rates:
        raise ConfigError(
            "a known rate of the training step",
            f"gpus={site.gpus} without measuring",
            "name a GPU with --gpu, measure here with --measure, or set rates.step=IMAGES_PER_SECOND",
        )
    return rates


def _list_input_rates(workload: Workload, site: Site) -> dict[str, Rate]:
    """Lists the rates of all stages in front of the device."""
    storage = find_storage(site.storage)
    unit = GB_SHARED if storage.is_shared else GB_PER_HOST
    rates = {
        "store": Rate(storage.gb_per_second, unit, storage.source),
        "network": Rate(25 * GBIT / GB, GB_PER_HOST, "estimate: 25 Gbit/s"),
        **_list_disk_rates(site),
        "feed": Rate(FEED_IMAGES_PER_SECOND[workload.decodes_on_gpu], IMAGES_PER_HOST, FEED_SOURCE),
        "decode": _estimate_cpu_decoding(workload, site),
    }
    if site.accelerator is None:
        return rates
    chip = find_accelerator(site.accelerator)
    rates["network"] = Rate(chip.network_bytes_per_second / GB, GB_PER_HOST, f"host: {chip.host}")
    if workload.decodes_on_gpu and chip.jpeg_engines:
        per_gpu = chip.jpeg_engines * JPEG_ENGINE_BYTES_PER_SECOND / workload.image_bytes
        is_measured = chip.jpeg_engines == JPEG_ENGINES_OF_A100
        source = JPEG_ENGINE_SOURCE if is_measured else OTHER_JPEG_ENGINE_SOURCE
        rates["decode"] = Rate(per_gpu * site.gpus, IMAGES_PER_HOST, source.format(engines=chip.jpeg_engines))
    return rates


def _list_disk_rates(site: Site) -> dict[str, Rate]:
    """Lists the rates of the drives of a host; of this machine's, which are not known, one is assumed."""
    name, count = DEFAULT_DRIVE, 1
    if site.accelerator is not None and not site.is_this_machine:
        chip = find_accelerator(site.accelerator)
        name = chip.drive
        count = max(int(chip.drives * site.gpus), 1)
    drive = DRIVES[name]
    source = drive.source.format(drives="one drive" if count == 1 else f"{count} striped drives, each")
    return {
        "cache_fill": Rate(count * drive.write_gb_per_second, GB_PER_HOST, source),
        "read": Rate(count * drive.read_gb_per_second, GB_PER_HOST, source),
    }


def _estimate_cpu_decoding(workload: Workload, site: Site) -> Rate:
    if workload.is_raw:
        source = RESIZE_SOURCE.format(cores=site.cores)
        return Rate(site.cores / RESIZE_SECONDS_PER_IMAGE, IMAGES_PER_HOST, source)
    seconds = DECODE_SECONDS_PER_IMAGE + DECODE_SECONDS_PER_BYTE * workload.image_bytes
    return Rate(site.cores / seconds, IMAGES_PER_HOST, DECODE_SOURCE.format(cores=site.cores))


def _list_device_rates(workload: Workload, site: Site) -> dict[str, Rate]:
    """Lists the rates of the GPUs of the table; none for a CPU."""
    if site.accelerator is None:
        if site.replicas == 1:
            return {}
        return {"all_reduce": Rate(25 * GBIT / GB, GB_PER_GPU, "estimate: 25 Gbit/s between replicas")}
    chip = find_accelerator(site.accelerator)
    pcie = compute_pcie_bytes_per_second(chip.pcie)
    within = chip.nvlink_bytes_per_second or pcie
    bus = within if site.hosts == 1 else min(within, site.gpus * chip.fabric_bytes_per_second)
    pcie_source = f"PCI Express {chip.pcie}.0 x16, PCI-SIG"
    bus_source = f"NVLink; {chip.source}" if chip.nvlink_bytes_per_second else pcie_source
    if bus < within:
        bus_source = f"{site.gpus} network adapters; host: {chip.host}"
    return {
        "to_device": Rate(pcie / GB, GB_PER_GPU, pcie_source),
        "step": Rate(estimate_step_rate(workload, chip), IMAGES_PER_GPU, STEP_SOURCE),
        "all_reduce": Rate(bus / GB, GB_PER_GPU, bus_source),
    }


def compute_pcie_bytes_per_second(generation: int) -> float:
    """Returns the payload of 16 lanes of PCI Express in one direction, of which 128b/130b leaves 128/130."""
    lanes = 16
    bits = 8
    return lanes * PCIE_TRANSFERS[generation] / bits * 128 / 130


def compute_roofline(workload: Workload, chip: Accelerator) -> float:
    """Computes the most images per second of a training step on one GPU.

    It is bound by its operations or by the bytes that move through the memory (Williams et al., 2009,
    "Roofline"). Updates of the weights are left out: they take little beside a large batch.

    Args:
        workload: The training, with the figures of its network.
        chip: GPU whose peaks bound the step.
    """
    peak = chip.tensor_flops if workload.value_bytes == 2 else chip.float32_flops
    traffic_bytes = ACTIVATION_PASSES * workload.value_bytes * workload.network.activation_values
    operation_seconds = workload.network.training_operations / peak
    memory_seconds = traffic_bytes / chip.memory_bytes_per_second
    return 1 / max(operation_seconds, memory_seconds)


def estimate_step_rate(workload: Workload, chip: Accelerator) -> float:
    """Estimates the images per second of a training step on one GPU: a share of the roofline."""
    return STEP_EFFICIENCY * compute_roofline(workload, chip)
