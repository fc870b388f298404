"""The roofline of a training: what every stage must deliver, what it can, and which one limits the rest."""

from __future__ import annotations

from dataclasses import dataclass

from service.planning.rates import (
    GB,
    GB_PER_GPU,
    GB_PER_HOST,
    GB_SHARED,
    IMAGES_PER_GPU,
    IMAGES_PER_HOST,
    Rate,
)
from service.planning.workload import Site, Workload

DEVICES = "devices"
CPU = "CPU cores"


@dataclass(frozen=True)
class Stage:
    """One stage between the store and the updated weights.

    Attributes:
        name: Name of the stage.
        resource: What it occupies. Stages of the same resource run one after the other, all others at the
            same time.
        passes: How often an image passes the stage for each time that it is trained on, over all hosts: 4 if
            each of 4 hosts fetches it.
        images_per_second: What the stage of all hosts together delivers.
        rate: The rate that follows from.
        work: What the stage does with an image, in words.
    """

    name: str
    resource: str
    passes: float
    images_per_second: float
    rate: Rate
    work: str

    @property
    def seconds_per_image(self) -> float:
        """Seconds that an image of the training occupies the stage."""
        return self.passes / self.images_per_second


@dataclass(frozen=True)
class Roofline:
    """The stages of an epoch.

    Attributes:
        stages: The stages, from the store to the update.
        cores: CPU cores of all hosts together.
    """

    stages: tuple[Stage, ...]
    cores: int

    @property
    def required(self) -> float:
        """Images per second that keep the devices busy; where they do not train, what is possible."""
        seconds = self._sum_seconds(DEVICES)
        return 1 / seconds if seconds else self.images_per_second

    @property
    def images_per_second(self) -> float:
        """Images per second of the training: those of its slowest resource."""
        return 1 / max(self._list_seconds().values())

    @property
    def bottleneck(self) -> str:
        """Name of the stage that takes longest on the slowest resource."""
        seconds = self._list_seconds()
        slowest = max(seconds, key=lambda resource: seconds[resource])
        stages = [stage for stage in self.stages if stage.resource == slowest]
        if not stages:
            return slowest
        return max(stages, key=lambda stage: stage.seconds_per_image).name

    @property
    def cpu_seconds_per_image(self) -> float:
        """CPU time of all threads of all hosts for an image, of the stages where it was measured."""
        return sum(stage.passes * stage.rate.cpu_seconds for stage in self.stages)

    def _list_seconds(self) -> dict[str, float]:
        """Lists the seconds per image of every resource."""
        seconds = {stage.resource: self._sum_seconds(stage.resource) for stage in self.stages}
        if self.cpu_seconds_per_image:
            seconds[CPU] = self.cpu_seconds_per_image / self.cores
        return seconds

    def _sum_seconds(self, resource: str) -> float:
        return sum(stage.seconds_per_image for stage in self.stages if stage.resource == resource)


def build_roofline(
    workload: Workload, site: Site, rates: dict[str, Rate], fetches: float, *, is_filling: bool = False
) -> Roofline:
    """Builds the stages of an epoch.

    Args:
        workload: Images, epochs, network and settings of the training.
        site: Hosts, GPUs and storage that the training runs on.
        rates: What the stages can deliver.
        fetches: How often the epoch fetches the training shards from the store, over all hosts.
        is_filling: Whether the decoded images of a cache in memory are made, without training.
    """
    stages: list[Stage] = []
    if is_filling or workload.cache == "none":
        # To fill a cache in memory, every host decodes all images.
        stages += _list_stored_stages(workload, site, rates, fetches, site.hosts if is_filling else 1)
    if not is_filling:
        stages += _list_device_stages(workload, site, rates)
    return Roofline(tuple(stages), site.hosts * site.cores)


def _list_stored_stages(
    workload: Workload, site: Site, rates: dict[str, Rate], fetches: float, copies: int
) -> list[Stage]:
    """Lists the stages from the store to decoded images, in which every image passes `copies` times."""
    size = workload.image_bytes
    stages = []
    if workload.is_remote and fetches:
        times = "once" if fetches == 1 else f"{fetches:.3g} times"
        fetch = f"{format_kilobytes(size)} fetched {times}"
        write = f"{format_kilobytes(size)} written to the shard cache"
        stages += [
            _build_stage("store", "store", rates, site, fetches, size, fetch),
            _build_stage("network", "network", rates, site, fetches, size, fetch),
            _build_stage("cache fill", "disk writes", rates, site, fetches, size, write),
        ]
    if site.storage == "nfs":
        stages.append(
            _build_stage("store", "store", rates, site, copies, size, f"{format_kilobytes(size)} read")
        )
    else:
        read = f"{format_kilobytes(size)} from local disk"
        stages.append(_build_stage("read", "disk reads", rates, site, copies, size, read))
    where = "on the GPUs" if workload.decodes_on_gpu else "on the CPU"
    stages.append(_build_stage("decode", "decoder", rates, site, copies, 1, f"decoded {where}"))
    return stages


def _list_device_stages(workload: Workload, site: Site, rates: dict[str, Rate]) -> list[Stage]:
    """Lists the stages of one image from the process of a host to the update."""
    stages = [_build_stage("feed", "feeder", rates, site, 1, 1, "handed over by Python")]
    sent = compute_copied_bytes(workload)
    if "to_device" in rates and sent:
        copied = f"{format_kilobytes(sent)} to the GPU"
        stages.append(_build_stage("copy to device", "PCI Express", rates, site, 1, sent, copied))
    operations = workload.network.training_operations / 1e9
    stages.append(_build_stage("step", DEVICES, rates, site, 1, 1, f"{operations:.3g} GFLOP"))
    sent_per_update = compute_all_reduce_bytes(workload, site.replicas)
    if sent_per_update and "all_reduce" in rates:
        per_update = workload.global_batch * workload.accumulate
        rate = rates["all_reduce"]
        seconds = sent_per_update / (rate.value * GB)
        work = f"{sent_per_update / 1e6:,.0f} MB per GPU and update of {per_update:,} images"
        stages.append(Stage("all-reduce", DEVICES, 1, per_update / seconds, rate, work))
    return stages


def compute_copied_bytes(workload: Workload) -> float:
    """Returns the bytes per image that go to the device: the file that it decodes, or the pixels.

    None go there if its memory holds the images.
    """
    if workload.cache == "device":
        return 0.0
    if workload.cache == "none" and workload.decodes_on_gpu:
        return workload.image_bytes
    return float(workload.pixel_bytes)


def compute_all_reduce_bytes(workload: Workload, replicas: int) -> float:
    """Returns the bytes that every replica sends in one sum of the gradients.

    In a ring, which is optimal, each of n replicas sends 2 (n - 1) / n times the gradients (Patarasu and
    Yuan, 2009, "Bandwidth optimal all-reduce algorithms"; the "bus bandwidth" of NVIDIA's nccl-tests).

    Args:
        workload: Images, epochs, network and settings of the training.
        replicas: Number of replicas.
    """
    return 2 * (replicas - 1) / replicas * workload.network.gradient_bytes


def _build_stage(
    name: str, resource: str, rates: dict[str, Rate], site: Site, passes: float, size: float, work: str
) -> Stage:
    """Builds a stage whose rate is in images, or in bytes of `size` per image."""
    rate = rates[_RATE_NAMES.get(name, name)]
    return Stage(name, resource, passes, _count_images_per_second(rate, site, size), rate, work)


_RATE_NAMES = {"cache fill": "cache_fill", "copy to device": "to_device"}


def _count_images_per_second(rate: Rate, site: Site, size: float) -> float:
    """Returns the images per second of all hosts together."""
    if rate.unit == IMAGES_PER_HOST:
        return rate.value * site.hosts
    if rate.unit == IMAGES_PER_GPU:
        return rate.value * site.replicas
    bytes_per_second = {
        GB_PER_HOST: rate.value * GB * site.hosts,
        GB_PER_GPU: rate.value * GB * site.replicas,
        GB_SHARED: rate.value * GB,
    }
    return bytes_per_second[rate.unit] / size


def format_kilobytes(size: float) -> str:
    """Formats a size in units of 1,000 bytes."""
    return f"{size / 1e3:,.3g} kB" if size < 1e5 else f"{size / 1e3:,.0f} kB"


def compute_fetches(workload: Workload, site: Site, lanes: int) -> list[float]:
    """Returns how often every epoch fetches the training shards, over all hosts.

    If the disk of a host holds all shards, it fetches each of them once. With lanes, a host needs another
    part of the shards in every epoch, of which it has some from the epochs before.

    Args:
        workload: Images, epochs, network and settings of the training.
        site: Hosts, GPUs and storage that the training runs on.
        lanes: Lanes of the order.

    Returns:
        Multiples of the size of the training shards, `[epochs]`; zeros without an object store.
    """
    if not workload.is_remote:
        return [0.0] * workload.epochs
    if workload.cache != "none":
        return [float(site.hosts)] + [0.0] * (workload.epochs - 1)  # every host decodes all images
    per_epoch = workload.bound_egress(site.hosts, lanes)
    if workload.set_bytes > site.disk_bytes:
        return [per_epoch] * workload.epochs
    kept_share = 0.0 if lanes == 1 else 1 - 1 / site.hosts
    return [per_epoch * kept_share**epoch for epoch in range(workload.epochs)]
