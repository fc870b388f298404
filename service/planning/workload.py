"""What is planned: images, network and settings of a training, and the machines that it runs on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipelines.input.egress import bound_egress

GRADIENT_BYTES = 4  # gradients are summed in float32, also with mixed precision


@dataclass(frozen=True)
class NetworkFigures:
    """What a network computes and holds.

    Attributes:
        name: Name of the model.
        parameters: Number of weights.
        trainable_parameters: Number of weights that training changes in the first stage.
        multiply_adds: Multiply-adds of the forward pass for one image.
        training_operations: Floating-point operations of forward and backward pass for one image: two for
            each multiply-add.
        activation_values: Number of values that all operations together write for one image.
        optimizer_bytes: Size of the optimizer's variables.
        checkpoint_bytes: Size of the file with the variables of a checkpoint.
        unknown_layers: Layers whose multiply-adds are not known and count as 0.
    """

    name: str
    parameters: int
    trainable_parameters: int
    multiply_adds: int
    training_operations: int
    activation_values: int
    optimizer_bytes: int
    checkpoint_bytes: int
    unknown_layers: tuple[str, ...] = ()

    @property
    def gradient_bytes(self) -> int:
        """Bytes that the replicas sum in every update."""
        return GRADIENT_BYTES * self.trainable_parameters

    @property
    def forward_share(self) -> float:
        """Operations of the forward pass as a share of those of a training step."""
        if not self.training_operations:
            return 1.0
        return 2 * self.multiply_adds / self.training_operations


@dataclass(frozen=True)
class Workload:
    """What a training does.

    Attributes:
        network: Figures of the model.
        train_images: Images of an epoch.
        validation_images: Images of an evaluation.
        image_bytes: Mean size of a stored image.
        pixel_bytes: Size of a decoded image, `height * width * channels`.
        is_raw: Whether images are stored as pixels, so that nothing is decoded.
        shard_bytes: Size of every training shard, int64 `[shards]`.
        validation_shards: Number of shards of the validation split.
        shard_rows: Images of a shard.
        is_remote: Whether the shards are on an object store and are cached on local disk.
        cache: Memory that holds the decoded images between epochs: `none`, `host` or `device`.
        cache_reason: Why this memory was chosen.
        global_batch: Images per step, over all replicas.
        accumulate: Steps per update.
        epochs: Passes over the training images.
        evaluate_every: Epochs between evaluations.
        lanes: Lanes of the order, see `data.lanes`.
        value_bytes: Size of an activation: 2 with mixed precision, else 4.
        keep_checkpoints: Newest checkpoints that are kept, next to the best one.
        decodes_on_gpu: Whether DALI decodes on the GPUs.
        ema: Whether a moving average of the weights is kept.
    """

    network: NetworkFigures
    train_images: int
    validation_images: int
    image_bytes: float
    pixel_bytes: int
    is_raw: bool
    shard_bytes: NDArray[np.int64]
    validation_shards: int
    shard_rows: int
    is_remote: bool
    cache: Literal["none", "host", "device"]
    cache_reason: str
    global_batch: int
    accumulate: int
    epochs: int
    evaluate_every: int
    lanes: int
    value_bytes: int
    keep_checkpoints: int
    decodes_on_gpu: bool
    ema: bool

    @property
    def steps(self) -> int:
        """Steps of an epoch; the last one is padded."""
        return -(-self.train_images // self.global_batch)

    @property
    def updates(self) -> int:
        """Updates of the whole training; the batches that an epoch leaves form its last one."""
        return self.epochs * -(-self.steps // self.accumulate)

    @property
    def evaluations(self) -> int:
        """Number of evaluations; the last epoch is evaluated in any case."""
        if not self.validation_images:
            return 0
        return -(-self.epochs // self.evaluate_every)

    @property
    def train_bytes(self) -> int:
        """Size of the training shards."""
        return int(self.shard_bytes.sum())

    @property
    def validation_bytes(self) -> int:
        """Size of the validation images as they are stored."""
        return round(self.image_bytes * self.validation_images)

    @property
    def set_bytes(self) -> int:
        """Size of the shard set."""
        return self.train_bytes + self.validation_bytes

    def bound_egress(self, hosts: int, lanes: int) -> float:
        """Returns how often an epoch fetches the training shards if no host keeps them, at most."""
        return bound_egress(self.shard_bytes, hosts, lanes)


@dataclass(frozen=True)
class Site:
    """The machines of a training; all hosts are alike.

    Attributes:
        hosts: Number of hosts.
        gpus: GPUs of each host; 0 trains on the CPU.
        accelerator: Name in `rates.ACCELERATORS`; None for a CPU, or a GPU that is not in the table.
        cores: CPU cores of each host.
        ram_bytes: RAM of each host.
        gpu_memory_bytes: Memory of each GPU; 0 on the CPU.
        disk_bytes: Disk space of each host that the shard cache may take.
        storage: Where the shards are, a name in `rates.STORAGE`.
        is_this_machine: Whether this machine is planned for, so that rates can be measured.
    """

    hosts: int
    gpus: int
    accelerator: str | None
    cores: int
    ram_bytes: int
    gpu_memory_bytes: int
    disk_bytes: int
    storage: str
    is_this_machine: bool = False

    @property
    def replicas(self) -> int:
        """Number of replicas: all GPUs, or one for each host without any."""
        return self.hosts * max(self.gpus, 1)

    @property
    def devices(self) -> str:
        """The devices in words, such as `4 hosts with 8 h100 each`."""
        host = "this machine" if self.is_this_machine else "1 host"
        hosts = host if self.hosts == 1 else f"{self.hosts} hosts"
        if not self.gpus:
            return f"{hosts}, {self.cores} CPU cores"
        each = "" if self.hosts == 1 else " each"
        return f"{hosts} with {self.gpus} {self.accelerator or 'GPU'}{each} and {self.cores} CPU cores"
