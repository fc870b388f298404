"""Where decoded images are kept between epochs: nowhere, in RAM, or in accelerator memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from pipelines.errors import ConfigError
from pipelines.input.memory import available_gpu_memory, available_ram
from pipelines.input.order import PADDING
from pipelines.records import Batch
from pipelines.spec import DataSpec

Images = NDArray[np.uint8]
Kind = Literal["none", "host", "device"]

SHARE = 0.5  # of the free memory that decoded images may take; the rest is for the model and everyone else
WORD = 8  # bytes that lie in accelerator memory as one int64: uint8 cannot be summed over replicas, and int32 lies in RAM


@dataclass(frozen=True)
class Tier:
    """Where the decoded images of a split are kept, and why.

    Attributes:
        name: `none`, `host` or `device`.
        reason: Bytes and what else led to the choice.
        sharded: On devices: whether each replica holds a part of the rows instead of all.
    """

    name: Kind
    reason: str
    sharded: bool = False

    def __str__(self) -> str:
        return f"cache: {self.name}{' sharded' if self.sharded else ''} ({self.reason})"


@dataclass
class Cache:
    """The memory that the decoded images of a run may take. Give the same one to every split, so that they share it.

    Attributes:
        strategy: Of the training, whose step calls `Batches.attach`; None where nothing does: then `device` is not to be had.
        workers: Processes like this one on this machine, which share its RAM.
        progress: Called with the images decoded so far, and how many there are, while a cache is filled.
        ram: Bytes free; None measures at the first question.
        gpu: Bytes free on each GPU, 0 without; None measures likewise.
    """

    strategy: tf.distribute.Strategy | None = None
    workers: int = 1
    progress: Callable[[int, int], None] = field(default=lambda done, rows: None)
    ram: int | None = None
    gpu: int | None = None

    def choose(self, rows: int, data: DataSpec) -> Tier:
        """Decides where the decoded images of a split go, and counts them in when the next split asks.

        Args:
            rows: Images.
            data: Their size, and the tier asked for.

        Raises:
            ConfigError: The tier asked for does not fit.
        """
        return self.reserve(
            rows * int(np.prod(data.image_size)) * data.channels, "decoded images", data.cache
        )

    def reserve(self, size: int, what: str, asked: Literal["auto"] | Kind = "auto") -> Tier:
        """Decides where a table goes, and counts it in when the next one asks.

        Args:
            size: Bytes.
            what: In words.
            asked: The tier asked for; `auto` takes the fastest that fits.

        Raises:
            ConfigError: The tier asked for does not fit.
        """
        if asked == "none":
            return Tier("none", "as asked for")
        if self.gpu is None:
            self.gpu = available_gpu_memory() if tf.config.list_physical_devices("GPU") else 0
        if self.ram is None:
            self.ram = available_ram() // self.workers
        on_gpu = f"{_bytes(self.gpu)} free on each of {self._replicas} GPUs" if self.gpu else "no GPU"
        facts = f"{_bytes(size)} of {what}; {_bytes(self.ram)} of RAM free{' for each worker' if self.workers > 1 else ''}; {on_gpu}"
        fits = self._fits(size)
        wanted = (
            asked
            if asked != "auto"
            else "device"
            if self.gpu and fits["device"]
            else "host"
            if fits["host"]
            else "none"
        )
        if wanted != "none" and not fits[wanted]:
            fix = "use cache=auto or cache=none, or a smaller image_size"
            raise ConfigError(
                f"{what} that fit into {SHARE:.0%} of the free memory", f"cache={wanted} with {facts}", fix
            )
        return self._taken(wanted, size, facts)

    @property
    def _replicas(self) -> int:
        """Replicas of this worker, among which the rows can be shared out."""
        if self.strategy is None or isinstance(self.strategy, tf.distribute.MultiWorkerMirroredStrategy):
            return 1  # between workers the images would have to travel through the network
        return int(self.strategy.num_replicas_in_sync)

    def _fits(self, size: int) -> dict[str, bool]:
        ram, device = self._budgets()
        host = size <= ram
        # on their way to the devices they pass through RAM
        return {
            "host": host,
            "device": self.strategy is not None and host and -(-size // self._replicas) <= device,
        }

    def _budgets(self) -> tuple[float, float]:
        """Bytes that images may take in RAM, and on each device; without GPUs the devices are parts of the RAM."""
        return SHARE * (self.ram or 0), SHARE * (self.gpu or (self.ram or 0) / self._replicas)

    def _taken(self, wanted: Kind, size: int, facts: str) -> Tier:
        """The tier, with the bytes it takes no longer counted as free."""
        if wanted == "none":
            return Tier(wanted, facts)
        if wanted == "host":
            self.ram = (self.ram or 0) - size
            return Tier(wanted, facts)
        sharded = size > self._budgets()[1]
        part = -(-size // self._replicas) if sharded else size
        if self.gpu:
            self.gpu -= part
        else:
            self.ram = (self.ram or 0) - part * self._replicas
        return Tier(wanted, facts, sharded)


def gathered(images: Images, rows: NDArray[np.int64]) -> Images:
    """The images of some rows from RAM, black for padding: uint8 `[B, H, W, C]`."""
    found = images[np.maximum(rows, 0)] if len(images) else np.zeros((len(rows), *images.shape[1:]), np.uint8)
    found[rows == PADDING] = 0
    return found


class DeviceImages:
    """Decoded images in the memory of the devices that train, so that the host sends only row numbers.

    Args:
        strategy: Of the training.
        images: uint8 `[rows, H, W, C]`; may be let go of afterwards.
        sharded: Each replica holds `1 / replicas` of the rows, and they send each other what a batch needs, which takes a sum over
            the replicas a step; otherwise each holds all.
    """

    def __init__(self, strategy: tf.distribute.Strategy, images: Images, sharded: bool = False) -> None:
        self._shape = images.shape[1:]
        self._replicas = strategy.num_replicas_in_sync if sharded else 1
        self._part = max(
            1, -(-len(images) // self._replicas)
        )  # rows of a replica; one black one where there are none
        words = _words(images)
        with strategy.scope():
            self._words = tf.Variable(
                tf.zeros(
                    [0, words.shape[1]], tf.int64
                ),  # takes over the memory of what is assigned: never are there two of it
                trainable=False,
                shape=tf.TensorShape([None, words.shape[1]]),
                synchronization=tf.VariableSynchronization.ON_READ,  # replicas may hold different rows
                aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
            )

        def part(context: tf.distribute.InputReplicaContext | tf.distribute.ReplicaContext) -> tf.Tensor:
            first = int(context.replica_id_in_sync_group) % self._replicas * self._part
            held = words[first : first + self._part]
            missing = self._part - len(held)
            return tf.constant(np.pad(held, ((0, missing), (0, 0))) if missing else held)

        parts = strategy.experimental_distribute_values_from_function(part)
        strategy.run(lambda held: self._words.assign(held), args=(parts,))

    def attach(self, batch: Batch) -> Batch:
        """Adds the images to a batch that has only row numbers. Call it in the step of a replica.

        Args:
            batch: With `row` int64 `[B]`.

        Returns:
            The batch with `image` uint8 `[B, H, W, C]`, black where there is padding.
        """
        rows = batch["row"]
        words = self._here(rows) if self._replicas == 1 else self._everywhere(rows)  # [B, words]
        size = int(np.prod(self._shape))
        pixels = tf.reshape(tf.bitcast(words, tf.uint8), [-1, words.shape[1] * WORD])[:, :size]
        return {**batch, "image": tf.reshape(pixels, [rows.shape[0], *self._shape])}

    def _here(self, rows: tf.Tensor) -> tf.Tensor:
        """The words of rows that this replica holds; zeros for all others."""
        held = (rows >= 0) & (rows < self._part)
        found = tf.gather(tf.convert_to_tensor(self._words), tf.where(held, rows, 0))
        return tf.where(held[:, None], found, tf.zeros_like(found))

    def _everywhere(self, rows: tf.Tensor) -> tf.Tensor:
        """The words of rows that any replica holds: each gives its own for the whole global batch, and takes its slice of the sum."""
        context = tf.distribute.get_replica_context()
        replica = tf.cast(context.replica_id_in_sync_group, tf.int64)
        batch = rows.shape[0]
        place = tf.one_hot(replica, self._replicas, dtype=tf.int64)[:, None]  # [replicas, 1]
        everyone = tf.reshape(context.all_reduce("sum", place * rows), [-1])  # [replicas * B]
        here = self._here(
            tf.where(everyone == PADDING, tf.constant(PADDING, tf.int64), everyone - replica * self._part)
        )
        whole = context.all_reduce("sum", here)  # [replicas * B, words]
        return tf.reshape(whole, [self._replicas, batch, -1])[tf.cast(replica, tf.int32)]


def _words(images: Images) -> NDArray[np.int64]:
    """Images as rows of int64 `[rows, words]`, filled up with zeros."""
    flat = images.reshape(len(images), int(np.prod(images.shape[1:])))
    spare = -flat.shape[1] % WORD
    return np.ascontiguousarray(np.pad(flat, ((0, 0), (0, spare))) if spare else flat).view(np.int64)


def _bytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
