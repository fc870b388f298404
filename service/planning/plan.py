"""The plan of a training: its stages, its duration and its resources, and how they were found."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from service.planning.rates import Rate
from service.planning.sizes import Sizes, compute_sizes
from service.planning.stages import Roofline, build_roofline, compute_fetches
from service.planning.workload import Site, Workload


@dataclass(frozen=True)
class Duration:
    """How long a training takes, in seconds, without the start of its processes.

    Attributes:
        first_epoch_seconds: Training of the first epoch, which may fetch and decode what later ones keep.
        epoch_seconds: Training of the last epoch.
        epoch_cpu_seconds: CPU time of its stages, over all threads; 0 where nothing is measured.
        fill_seconds: Decoding of all images into a cache in memory, before the first epoch.
        evaluation_seconds: Evaluation of the validation split, once.
        total_seconds: The whole training.
    """

    first_epoch_seconds: float
    epoch_seconds: float
    epoch_cpu_seconds: float
    fill_seconds: float
    evaluation_seconds: float
    total_seconds: float


@dataclass(frozen=True)
class Plan:
    """The plan of a training.

    Attributes:
        workload: Images, epochs, network and settings of the training.
        site: Hosts, GPUs and storage that the training runs on.
        roofline: The stages of the first epoch, which is the most demanding.
        later_roofline: The stages of the last epoch.
        fill_roofline: The stages that fill a cache of decoded images at the start; None without one.
        rates: What the stages can deliver, with sources.
        duration: How long it takes.
        sizes: The resources that it takes.
        notes: What was inferred, and what is inaccurate, in sentences.
    """

    workload: Workload
    site: Site
    roofline: Roofline
    later_roofline: Roofline
    fill_roofline: Roofline | None
    rates: dict[str, Rate]
    duration: Duration
    sizes: Sizes
    notes: tuple[str, ...] = ()

    @property
    def bottleneck(self) -> str:
        """Name of the stage that limits the first epoch."""
        return self.roofline.bottleneck

    @property
    def images_per_second(self) -> float:
        """Images per second of the training in its first epoch."""
        return self.roofline.images_per_second

    @property
    def hours(self) -> float:
        """Hours of the whole training, without the start of its processes."""
        return self.duration.total_seconds / 3600

    def to_json(self) -> dict[str, Any]:
        """Returns the plan as plain values; units are part of the names."""
        return {
            "model": asdict(self.workload.network),
            "images": {
                "train": self.workload.train_images,
                "validation": self.workload.validation_images,
                "stored_bytes": self.workload.image_bytes,
                "decoded_bytes": self.workload.pixel_bytes,
            },
            "global_batch": self.workload.global_batch,
            "epochs": self.workload.epochs,
            "updates": self.workload.updates,
            "cache": self.workload.cache,
            "site": asdict(self.site),
            "stages": _describe_stages(self.roofline),
            "fill_stages": _describe_stages(self.fill_roofline) if self.fill_roofline else [],
            "later_stages": _describe_stages(self.later_roofline),
            "bottleneck": self.bottleneck,
            "images_per_second": self.images_per_second,
            "later_bottleneck": self.later_roofline.bottleneck,
            "later_images_per_second": self.later_roofline.images_per_second,
            "hours": self.hours,
            "duration": asdict(self.duration),
            "resources": asdict(self.sizes),
            "rates": {name: asdict(rate) for name, rate in self.rates.items()},
            "notes": list(self.notes),
        }


def _describe_stages(roofline: Roofline) -> list[dict[str, Any]]:
    return [
        {
            "name": stage.name,
            "required_images_per_second": stage.passes * roofline.required,
            "delivered_images_per_second": stage.images_per_second,
            "work": stage.work,
            "source": stage.rate.source,
        }
        for stage in roofline.stages
    ]


def make_plan(
    workload: Workload,
    site: Site,
    rates: dict[str, Rate],
    notes: tuple[str, ...] = (),
    process_bytes: float | None = None,
) -> Plan:
    """Plans a training.

    Args:
        workload: Images, epochs, network and settings of the training.
        site: Hosts, GPUs and storage that the training runs on.
        rates: What every stage can deliver.
        notes: What was inferred, in sentences.
        process_bytes: Measured memory of a process that has trained on one batch; None for that of the table.
    """
    fetches = compute_fetches(workload, site, workload.lanes)
    rooflines = [build_roofline(workload, site, rates, count) for count in fetches]
    fill = None
    if workload.cache != "none":
        fill = build_roofline(workload, site, rates, fetches[0], is_filling=True)
    return Plan(
        workload=workload,
        site=site,
        roofline=rooflines[0],
        later_roofline=rooflines[-1],
        fill_roofline=fill,
        rates=rates,
        duration=_compute_duration(workload, rooflines, fill),
        sizes=compute_sizes(workload, site, process_bytes),
        notes=notes,
    )


def _compute_duration(
    workload: Workload, rooflines: list[Roofline], fill_roofline: Roofline | None
) -> Duration:
    """Adds up the epochs, the evaluations and the filling of a cache in memory."""
    rows = workload.steps * workload.global_batch  # with the padding of the last batch
    epochs = [rows / roofline.images_per_second for roofline in rooflines]
    images = workload.train_images + workload.validation_images
    fill = images / fill_roofline.images_per_second if fill_roofline else 0.0
    evaluation = workload.validation_images / _build_evaluation(rooflines[-1], workload).images_per_second
    return Duration(
        first_epoch_seconds=epochs[0],
        epoch_seconds=epochs[-1],
        epoch_cpu_seconds=rows * rooflines[-1].cpu_seconds_per_image,
        fill_seconds=fill,
        evaluation_seconds=evaluation,
        total_seconds=fill + sum(epochs) + workload.evaluations * evaluation,
    )


def _build_evaluation(roofline: Roofline, workload: Workload) -> Roofline:
    """Returns the stages of an evaluation: those of an epoch, with the forward pass alone."""
    share = workload.network.forward_share
    stages = []
    for stage in roofline.stages:
        if stage.name == "all-reduce":
            continue
        if stage.name == "step":
            rate = replace(stage.rate, cpu_seconds=stage.rate.cpu_seconds * share)
            stage = replace(stage, images_per_second=stage.images_per_second / share, rate=rate)
        stages.append(stage)
    return Roofline(tuple(stages), roofline.cores)
