"""Turns what a user knows about a training into its plan: a preset, a shard set, or numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.augment.decoded_crop import is_cropped_while_decoding
from pipelines.errors import ConfigError
from pipelines.input.mixed_manifest import load_training_manifest
from pipelines.input.order import check_lane_workers
from pipelines.remote.uri import Uri, parse_location
from pipelines.settings import check
from pipelines.shards.manifest import Manifest
from pipelines.shards.plan import PlannedSplit, choose_shard_rows
from service.config import RunConfig, build_config, read_preset, set_value
from service.planning.machine import (
    DEFAULT_GPU,
    describe_machines,
    describe_this_machine,
    list_local_gpus,
    match_accelerator,
)
from service.planning.plan import Plan, make_plan
from service.planning.rates import (
    ACCELERATORS,
    SMALL_NETWORK_OPERATIONS,
    STORAGE,
    Measurement,
    RateSpec,
    find_accelerator,
    find_storage,
    list_rates,
)
from service.planning.workload import Site, Workload
from service.training.replicas import can_share, find_even_batches

if TYPE_CHECKING:
    from pipelines.input.cache import TierName

GIGABYTE = 10**9
KILOBYTE = 1000
RATES = "rates."
IMAGES_PER_GPU = 256  # the batch of each GPU where nothing sets one
DEFAULT_CLASSES = 1000
MIXED_PRECISION = "mixed_bfloat16"
NO_SHARDS = "not-built-yet"  # stands for the shard set of a plan from numbers


@dataclass(frozen=True)
class PlanRequest:
    """What a plan is asked for; None for everything that is to be inferred.

    Attributes:
        preset: Name of a preset, or path or URI of a YAML file.
        data: Path or URI of the shard set.
        images: Number of training images, without a shard set.
        validation_images: Number of validation images, without a shard set.
        kb: Mean size of a stored image in units of 1,000 bytes, without a shard set.
        classes: Number of classes, without a shard set.
        size: Image size in pixels: side, or `HEIGHTxWIDTH`.
        model: Name of a model, in place of that of the preset.
        gpu: GPU of every replica, a name in `rates.ACCELERATORS`.
        gpus: GPUs of each host.
        hosts: Number of hosts.
        storage: Where the shards are, a name in `rates.STORAGE`.
        cores: CPU cores of each host.
        ram_gb: RAM of each host in units of 10**9 bytes.
        disk_gb: Disk of each host that the shard cache may take, in units of 10**9 bytes.
        measure: Whether rates are measured on this machine; the hosts are then like this machine.
        overrides: `key=value` settings of the run, and rates as `rates.decode=9000`.
    """

    preset: str | None = None
    data: str | None = None
    images: int | None = None
    validation_images: int | None = None
    kb: float | None = None
    classes: int | None = None
    size: str | None = None
    model: str | None = None
    gpu: str | None = None
    gpus: int | None = None
    hosts: int | None = None
    storage: str | None = None
    cores: int | None = None
    ram_gb: float | None = None
    disk_gb: float | None = None
    measure: bool | None = None
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Images:
    """The images of a training, from a manifest or from numbers."""

    train: int
    validation: int
    bytes: float
    is_raw: bool
    shard_bytes: np.ndarray
    validation_shards: int
    shard_rows: int
    classes: tuple[str, ...]


def plan_training(request: PlanRequest) -> Plan:
    """Plans a training.

    Args:
        request: What is known about it.

    Raises:
        ConfigError: An option is missing, invalid or contradicts another.
        DataError: The shard set does not exist or is damaged.
    """
    _check_request(request)
    changes = _read_rates(request)
    site, notes = _choose_site(request)
    config, config_notes = _build_config(request, site)
    images, image_notes = _describe_images(request, config)
    notes += config_notes + image_notes
    _check_batch(config, site)

    # TensorFlow is imported from here on.
    from service.devices import configure_devices

    configure_devices(use_gpu=site.is_this_machine)
    from service.planning.network import SyntheticBatches, build_planned_learner, describe_learner

    batches = SyntheticBatches(config, images.train, images.classes)
    learner = build_planned_learner(config, batches)
    figures = describe_learner(learner, config.model)
    if figures.unknown_layers:
        notes.append(f"multiply-adds: not known of {', '.join(figures.unknown_layers)}, which count as 0")
    cache, reason = _choose_cache(config, site, images)
    workload = Workload(
        network=figures,
        train_images=images.train,
        validation_images=images.validation,
        image_bytes=images.bytes,
        pixel_bytes=_count_pixels(config),
        is_raw=images.is_raw,
        shard_bytes=images.shard_bytes,
        validation_shards=images.validation_shards,
        shard_rows=images.shard_rows,
        is_remote=find_storage(site.storage).is_remote,
        cache=cache,
        cache_reason=reason,
        global_batch=config.global_batch,
        accumulate=config.accumulate,
        epochs=config.epochs,
        evaluate_every=config.evaluate_every,
        lanes=config.data.lanes,
        value_bytes=4 if config.precision == "float32" else 2,
        keep_checkpoints=config.keep_checkpoints,
        decodes_on_gpu=_decodes_on_gpu(config, site, images),
        ema=config.ema is not None,
    )
    measured: dict[str, Measurement] = {}
    process_bytes = None
    if site.is_this_machine and request.measure is not False:
        from service.planning.measure import measure_process_bytes, measure_step

        measured["step"] = measure_step(config, batches, learner)
        process_bytes = measure_process_bytes()  # before images are cached, which are counted on their own
        measured |= _measure_input(request, config, workload)
    elif figures.training_operations < SMALL_NETWORK_OPERATIONS:
        notes.append("step: estimated from large networks; one as small as this may reach a third of it")
    return make_plan(
        workload, site, list_rates(workload, site, measured, changes), tuple(notes), process_bytes
    )


def _check_request(request: PlanRequest) -> None:
    """Checks which options there are."""
    if not request.data and request.images is None:
        raise ConfigError(
            "a shard set or a number of images", "neither --data nor --images", "name one of both"
        )
    if request.data:
        for name in ("images", "validation_images", "kb", "classes"):
            if getattr(request, name) is not None:
                option = f"--{name.replace('_', '-')}"
                raise ConfigError("a shard set or numbers", f"--data with {option}", f"leave out {option}")
    if not request.preset and not request.model:
        raise ConfigError("a preset or a model", "neither --preset nor --model", "name one of both")
    minimums = {"images": 1, "validation_images": 0, "classes": 2, "gpus": 0, "hosts": 1, "cores": 1}
    for name, minimum in minimums.items():
        value = getattr(request, name)
        if value is not None and value < minimum:
            raise ConfigError(f"at least {minimum}", f"{name}={value}", "use a larger number")
    for name in ("kb", "ram_gb", "disk_gb"):
        value = getattr(request, name)
        if value is not None and value <= 0:
            raise ConfigError("a number above 0", f"{name}={value}", "use a larger number")


def _read_rates(request: PlanRequest) -> RateSpec:
    """Reads the rates among the overrides."""
    settings: dict[str, Any] = {}
    for override in request.overrides:
        if override.startswith(RATES):
            set_value(settings, override.removeprefix(RATES))
    return check(RateSpec, settings, "the command line")


def _choose_site(request: PlanRequest) -> tuple[Site, list[str]]:
    """Chooses the machines: those that are named, else hosts like this machine."""
    storage = request.storage or _infer_storage(request)
    hosts = request.hosts or 1
    is_named = request.gpu is not None or bool(request.gpus)
    if request.measure and is_named:
        _check_local_gpus(request)
    notes = []
    if is_named and not request.measure:
        gpu = request.gpu
        if gpu is None:
            local = [match_accelerator(name) for name in list_local_gpus()]
            gpu = next((name for name in local if name), DEFAULT_GPU)
            others = ", ".join(name for name in ACCELERATORS if name != gpu)
            notes.append(f"GPU: {gpu}, because --gpu names no other ({others})")
        gpus = 1 if request.gpus is None else request.gpus
        site = describe_machines(gpu, gpus, hosts, storage)
        notes.append(_describe_host(site))
    else:
        site = describe_this_machine(hosts, storage)
    if not request.storage:
        reason = "from the address of the set" if request.data else "as no other is named"
        notes.append(f"storage: {storage}, {reason}; --storage sets another")
    site = replace(
        site,
        cores=request.cores or site.cores,
        ram_bytes=int((request.ram_gb or 0) * GIGABYTE) or site.ram_bytes,
        disk_bytes=int((request.disk_gb or 0) * GIGABYTE) or site.disk_bytes,
    )
    return site, notes


def _check_local_gpus(request: PlanRequest) -> None:
    """Checks that the GPUs that are to be measured are those of this machine."""
    local = list_local_gpus()
    names = {match_accelerator(name) for name in local}
    is_same = (request.gpu is None or request.gpu in names) and request.gpus in (None, len(local))
    if not is_same:
        raise ConfigError(
            "the GPUs of this machine, where rates are measured",
            f"--measure with gpu={request.gpu} gpus={request.gpus} (here: {', '.join(local) or 'none'})",
            "leave out --measure, or --gpu and --gpus",
        )


def _infer_storage(request: PlanRequest) -> str:
    location = parse_location(request.data) if request.data else None
    if not isinstance(location, Uri):
        return "disk"
    return location.scheme if location.scheme in STORAGE else "http"


def _describe_host(site: Site) -> str:
    ram = f"{site.ram_bytes / 1e9:,.0f} GB of RAM"
    disk = f"{site.disk_bytes / 1e12:.1f} TB of disk"
    gpus = f"{site.gpus} {site.accelerator}"
    return f"host: {site.cores} cores, {ram} and {disk} come with {gpus}; --cores, --ram-gb, --disk-gb"


def _build_config(request: PlanRequest, site: Site) -> tuple[RunConfig, list[str]]:
    """Builds the configuration of the run, with what is inferred for a plan without a preset."""
    name, settings = read_preset(request.preset) if request.preset else ("plan", {})
    notes = []
    overrides = [override for override in request.overrides if not override.startswith(RATES)]
    if request.model:
        overrides.insert(0, f"model={request.model}")
    if request.size:
        overrides.insert(0, f"data.image_size={request.size}")
    for override in overrides:
        set_value(settings, override)
    if not request.preset and site.gpus:
        if "global_batch" not in settings:
            settings["global_batch"] = IMAGES_PER_GPU * site.replicas
            notes.append(
                f"global_batch: {settings['global_batch']:,}, which is {IMAGES_PER_GPU} for each GPU"
            )
        if "precision" not in settings:
            settings["precision"] = MIXED_PRECISION
            notes.append(
                f"precision: {MIXED_PRECISION}, for the tensor cores; precision=float32 sets another"
            )
    shards = request.data or NO_SHARDS
    return build_config(name, settings, shards, "the preset or the command line"), notes


def _describe_images(request: PlanRequest, config: RunConfig) -> tuple[_Images, list[str]]:
    """Describes the images: those of the shard set, or of the numbers."""
    if request.data:
        return _read_images(load_training_manifest(config.shards, config.data), config), []
    notes = []
    train = request.images or 0
    validation = request.validation_images or 0
    classes = request.classes or DEFAULT_CLASSES
    if request.validation_images is None:
        notes.append("validation: no images, as none are named; --validation-images sets their number")
    if request.classes is None:
        notes.append(f"classes: {classes:,}, as in ImageNet; --classes sets another number")
    size = KILOBYTE * request.kb if request.kb else float(_count_pixels(config))
    if not request.kb:
        notes.append(f"image: {size / KILOBYTE:,.0f} kB, stored as pixels; --kb sets the mean size of a file")
    shard_rows = choose_shard_rows(train, size)
    split = PlannedSplit("train", "train", 0, train, shard_rows)
    rows = np.full(split.shards, shard_rows, np.int64)
    rows[-1] = train - shard_rows * (split.shards - 1)
    images = _Images(
        train=train,
        validation=validation,
        bytes=size,
        is_raw=not request.kb,
        shard_bytes=(rows * size).astype(np.int64),
        validation_shards=PlannedSplit("validation", "validation", 0, validation, shard_rows).shards,
        shard_rows=shard_rows,
        classes=tuple(f"class {number}" for number in range(classes)),
    )
    return images, notes


def _read_images(manifest: Manifest, config: RunConfig) -> _Images:
    """Reads the numbers of a shard set from its manifest."""
    train = manifest.get_split("train")
    validation = manifest.splits.get("validation")
    # The manifest has the size of all shards, and they have equally many rows but for the last.
    shards = train.shard_count
    shard_bytes = np.full(shards, train.bytes // shards, np.int64)
    shard_bytes[: train.bytes % shards] += 1
    return _Images(
        train=config.data.epoch_images or train.rows,
        validation=validation.rows if validation else 0,
        bytes=train.bytes / train.rows,
        is_raw=manifest.encoding == "raw",
        shard_bytes=shard_bytes,
        validation_shards=validation.shard_count if validation else 0,
        shard_rows=-(-train.rows // shards),
        classes=manifest.classes,
    )


def _check_batch(config: RunConfig, site: Site) -> None:
    """Checks that the replicas can share the batch, and the hosts the lanes."""
    check_lane_workers(config.data.lanes, site.hosts)
    if can_share(site.replicas, config.global_batch, config.augment):
        return
    sizes = find_even_batches(site.replicas, config.global_batch, config.augment)
    raise ConfigError(
        f"a batch that {site.replicas} replicas can share evenly",
        f"global_batch={config.global_batch}",
        f"use global_batch={' or '.join(map(str, sizes))}",
    )


def _count_pixels(config: RunConfig) -> int:
    """Returns the bytes of a decoded image."""
    height, width = config.data.image_size
    return height * width * config.data.channels


def _decodes_on_gpu(config: RunConfig, site: Site, images: _Images) -> bool:
    """Tells whether DALI decodes: as requested, or where the GPU has JPEG decoders of its own."""
    if not site.gpus or images.is_raw or config.data.backend == "tfdata":
        return False
    if config.data.backend == "dali":
        return True
    has_engines = site.accelerator is not None and find_accelerator(site.accelerator).jpeg_engines > 0
    return has_engines and config.data.decode == "exact"


def _choose_cache(config: RunConfig, site: Site, images: _Images) -> tuple[TierName, str]:
    """Chooses the memory of the decoded images, as a run on these machines does."""
    if is_cropped_while_decoding(config.augment):
        return "none", "none (augment.crop_at=decode: each epoch decodes other parts of the images)"

    from service.planning.network import PlannedBudget

    budget = PlannedBudget.of_site(site)
    tiers = [budget.choose(rows, config.data) for rows in (images.train, images.validation) if rows]
    return tiers[0].name, str(tiers[0])


def _measure_input(request: PlanRequest, config: RunConfig, workload: Workload) -> dict[str, Measurement]:
    """Measures what this machine can of the stages in front of the step."""
    from service.planning import measure

    if not request.data:
        if workload.is_raw:
            return {}
        return {"decode": measure.measure_generated_photos(config.data, workload.image_bytes)}
    rates = {"decode": measure.measure_decoding(config)}
    feed = measure.measure_feeding(config) if workload.cache != "none" else None
    if feed is not None:
        rates["feed"] = feed
    return rates
