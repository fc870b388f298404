"""How much memory, disk and network a training takes."""

from __future__ import annotations

from dataclasses import dataclass

from service.planning.stages import compute_all_reduce_bytes, compute_fetches
from service.planning.workload import Site, Workload

VALUE_BYTES = 4  # of a weight
# Batches that tf.data holds at a time: those decoded ahead, those being decoded, and the one in use
# (`PREFETCH` and `PARALLEL_BATCHES` of pipelines/input/tfdata.py; a test compares them).
BATCHES_IN_MEMORY = 7
# Resident memory of a worker before it has any data: TensorFlow, Keras, Arrow and their threads. Measured on
# a CPU; with the libraries of CUDA it is an assumption.
PROCESS_BYTES = 0.75e9
GPU_PROCESS_BYTES = 4e9
# A checkpoint is written from a copy of all variables, and the model from a copy of its own.
COPIES_OF_WEIGHTS = 3
COPIES_OF_OPTIMIZER = 2
# Checkpoints of the weights alone: the first epoch and two in the middle (`service.milestones`).
MILESTONES = 3


@dataclass(frozen=True)
class Sizes:
    """The resources of a training, in bytes unless a name says otherwise.

    Attributes:
        ram_bytes: RAM of each host, without the page cache.
        ram_parts: What it is made of, in words.
        gpu_memory_bytes: Memory of each GPU, if the outputs of all operations are kept; 0 on a CPU. XLA keeps
            fewer.
        train_shards: Number of shards of the training split.
        validation_shards: Number of shards of the validation split.
        shard_bytes: Mean size of a training shard.
        set_bytes: Size of the shard set.
        disk_cache_bytes: Disk of each host that holds all shards it reads; 0 without an object store.
        is_set_cached: Whether the disk of a host holds the set, so that later epochs fetch less, or nothing.
        checkpoint_bytes: Size of a checkpoint.
        checkpoints_bytes: Size of all checkpoints that a run keeps, and of its milestones.
        fetched_bytes: Bytes that all hosts together fetch from the store in the whole training.
        fetched_bytes_with_lanes: The same if `data.lanes` were the number of hosts or a multiple of it.
        fetched_bytes_without_lanes: The same if `data.lanes` were 1.
        all_reduce_bytes: Bytes that each GPU sends in an update.
        all_reduce_total_bytes: Bytes that all GPUs send in the whole training.
    """

    ram_bytes: float
    ram_parts: dict[str, float]
    gpu_memory_bytes: float
    train_shards: int
    validation_shards: int
    shard_bytes: float
    set_bytes: int
    disk_cache_bytes: int
    is_set_cached: bool
    checkpoint_bytes: int
    checkpoints_bytes: int
    fetched_bytes: float
    fetched_bytes_with_lanes: float
    fetched_bytes_without_lanes: float
    all_reduce_bytes: float
    all_reduce_total_bytes: float


def compute_sizes(workload: Workload, site: Site, process_bytes: float | None = None) -> Sizes:
    """Computes the resources of a training.

    Args:
        workload: Images, epochs, network and settings of the training.
        site: Hosts, GPUs and storage that the training runs on.
        process_bytes: Measured memory of a process that has trained on one batch; None for that of the table.
    """
    parts = _list_ram(workload, site, process_bytes)
    sent = compute_all_reduce_bytes(workload, site.replicas)
    network = workload.network
    kept = workload.keep_checkpoints + 1  # the best epoch
    # Until there are as many epochs, there are fewer.
    kept = min(kept, workload.epochs)
    milestones = min(MILESTONES, workload.epochs) * VALUE_BYTES * network.parameters
    lanes = workload.lanes if workload.lanes > 1 else site.hosts
    return Sizes(
        ram_bytes=sum(parts.values()),
        ram_parts=parts,
        gpu_memory_bytes=_compute_gpu_memory(workload, site) if site.gpus else 0.0,
        train_shards=len(workload.shard_bytes),
        validation_shards=workload.validation_shards,
        shard_bytes=workload.train_bytes / max(len(workload.shard_bytes), 1),
        set_bytes=workload.set_bytes,
        disk_cache_bytes=workload.set_bytes if workload.is_remote else 0,
        is_set_cached=workload.is_remote and workload.set_bytes <= site.disk_bytes,
        checkpoint_bytes=network.checkpoint_bytes,
        checkpoints_bytes=kept * network.checkpoint_bytes + milestones,
        fetched_bytes=count_fetched_bytes(workload, site, workload.lanes),
        fetched_bytes_with_lanes=count_fetched_bytes(workload, site, lanes),
        fetched_bytes_without_lanes=count_fetched_bytes(workload, site, 1),
        all_reduce_bytes=sent,
        all_reduce_total_bytes=sent * site.replicas * workload.updates,
    )


def count_fetched_bytes(workload: Workload, site: Site, lanes: int) -> float:
    """Counts the bytes that all hosts fetch from the store in the whole training.

    Args:
        workload: Images, epochs, network and settings of the training.
        site: Hosts, GPUs and storage that the training runs on.
        lanes: Lanes of the order.
    """
    if not workload.is_remote:
        return 0.0
    train = sum(compute_fetches(workload, site, lanes)) * workload.train_bytes
    is_kept = workload.set_bytes <= site.disk_bytes or workload.cache != "none"
    validations = min(workload.evaluations, 1) if is_kept else workload.evaluations
    copies = site.hosts if lanes == 1 or workload.cache != "none" else 1
    return train + validations * copies * workload.validation_bytes


def _list_ram(workload: Workload, site: Site, process_bytes: float | None) -> dict[str, float]:
    """Lists what the RAM of a host holds."""
    network = workload.network
    batch_of_host = workload.global_batch / site.hosts
    images = workload.train_images + workload.validation_images
    process = process_bytes
    if process is None:
        process = GPU_PROCESS_BYTES if site.gpus else PROCESS_BYTES
    weights = COPIES_OF_WEIGHTS * VALUE_BYTES * network.parameters
    parts = {
        "process": process,
        "copies of the weights": weights + COPIES_OF_OPTIMIZER * network.optimizer_bytes,
        "batches": BATCHES_IN_MEMORY * batch_of_host * (workload.pixel_bytes + workload.image_bytes),
    }
    if workload.cache != "none":
        parts["decoded images"] = float(images * workload.pixel_bytes)
    if not site.gpus and process_bytes is None:
        parts["outputs of layers"] = _count_activation_bytes(workload, site)
        parts["gradients"] = float(network.gradient_bytes)
    return parts


def _compute_gpu_memory(workload: Workload, site: Site) -> float:
    network = workload.network
    held: float = VALUE_BYTES * network.parameters + network.optimizer_bytes + network.gradient_bytes
    if workload.ema:
        held += VALUE_BYTES * network.trainable_parameters
    if workload.cache == "device":
        images = workload.train_images + workload.validation_images
        # The GPUs of a single host share the images, as `service.planning.network.PlannedBudget` assumes.
        holders = site.gpus if site.hosts == 1 else 1
        held += workload.pixel_bytes * images / holders
    return held + _count_activation_bytes(workload, site)


def _count_activation_bytes(workload: Workload, site: Site) -> float:
    """Counts the bytes of the outputs of all operations for the batch of a replica."""
    batch = workload.global_batch / site.replicas
    return batch * workload.value_bytes * workload.network.activation_values
