"""Keeps decoded images between epochs: nowhere, in RAM, or in accelerator memory, whichever fits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from pipelines.errors import ConfigError
from pipelines.input.memory import measure_available_gpu_memory, measure_available_ram
from pipelines.input.order import PADDING
from pipelines.input.placement import ALIGNMENT, allocate, copy_to_device, list_devices
from pipelines.records import Batch
from pipelines.spec import DataSpec

Images = NDArray[np.uint8]
TierName = Literal["none", "host", "device"]

# Share of the free memory that decoded images may take; the rest is for the model and other processes.
SHARE = 0.5
# Images are stored on a device as int64: uint8 cannot be summed, and int32 would stay in RAM.
WORD_BYTES = 8
ALIGNED_ROWS = ALIGNMENT // WORD_BYTES  # rows of words that take a multiple of the alignment


@dataclass(frozen=True)
class Tier:
    """The memory that holds the decoded images of a split.

    Attributes:
        name: One of `none`, `host` and `device`.
        reason: Sizes and other facts that led to the choice.
        is_sharded: Whether each replica holds a part of the rows on its device instead of all of them.
    """

    name: TierName
    reason: str
    is_sharded: bool = False

    def __str__(self) -> str:
        return f"cache: {self.name}{' sharded' if self.is_sharded else ''} ({self.reason})"


@dataclass
class CacheBudget:
    """The memory that the decoded images of a run may take. All splits of a run share one budget.

    Attributes:
        strategy: Strategy whose training step calls `Batches.attach`; None if nothing does, which rules out
            the tier `device`.
        workers: Number of worker processes on this machine, which share its RAM.
        progress: Called while a cache is filled, with the number of images decoded so far and in total.
        ram: Free bytes of RAM; None to measure them when they are first needed.
        gpu: Free bytes on each GPU, 0 without one; None to measure them when they are first needed.
    """

    strategy: tf.distribute.Strategy | None = None
    workers: int = 1
    progress: Callable[[int, int], None] = field(default=lambda done, rows: None)
    ram: int | None = None
    gpu: int | None = None

    def choose(self, rows: int, data: DataSpec) -> Tier:
        """Chooses the tier of a split's decoded images, and deducts them from the budget.

        Args:
            rows: Number of images in the split.
            data: Size of the images, and the requested tier.

        Raises:
            ConfigError: The requested tier does not fit.
        """
        size = rows * int(np.prod(data.image_size)) * data.channels
        return self.reserve(size, "decoded images", data.cache)

    def reserve(self, size: int, content: str, requested: Literal["auto"] | TierName = "auto") -> Tier:
        """Chooses the tier of a table, and deducts it from the budget.

        Args:
            size: Bytes of the table.
            content: What the table holds, for messages.
            requested: The requested tier; `auto` chooses the fastest that fits.

        Raises:
            ConfigError: The requested tier does not fit.
        """
        if requested == "none":
            return Tier("none", "as requested")
        self.measure()
        reason = self._describe(size, content)
        fits = self._find_fitting(size)
        name = self._choose_fastest(fits) if requested == "auto" else requested
        if name != "none" and not fits[name]:
            raise ConfigError(
                f"{content} that fit into {SHARE:.0%} of the free memory",
                f"cache={name} with {reason}",
                "use cache=auto or cache=none, or a smaller image_size",
            )
        return self._deduct(name, size, reason)

    def measure(self) -> tuple[int, int]:
        """Measures what is not known yet; returns the free bytes of RAM, and on each GPU."""
        if self.gpu is None:
            self.gpu = measure_available_gpu_memory() if tf.config.get_visible_devices("GPU") else 0
        if self.ram is None:
            self.ram = measure_available_ram() // self.workers
        return self.ram, self.gpu

    @property
    def _replicas(self) -> int:
        """Number of replicas of this worker, among which the rows can be sharded."""
        if self.strategy is None or isinstance(self.strategy, tf.distribute.MultiWorkerMirroredStrategy):
            return 1  # between workers the images would have to travel through the network
        return int(self.strategy.num_replicas_in_sync)

    def _describe(self, size: int, content: str) -> str:
        ram = f"{format_bytes(self.ram or 0)} of RAM free"
        if self.workers > 1:
            ram += " for each worker"
        gpu = f"{format_bytes(self.gpu)} free on each of {self._replicas} GPUs" if self.gpu else "no GPU"
        return f"{format_bytes(size)} of {content}; {ram}; {gpu}"

    def _find_fitting(self, size: int) -> dict[str, bool]:
        """Tells whether a table fits into each of the tiers `host` and `device`."""
        ram, device = self._compute_limits()
        fits_host = size <= ram  # also required for `device`: images pass through RAM on their way there
        fits_device = self.strategy is not None and fits_host and -(-size // self._replicas) <= device
        return {"host": fits_host, "device": fits_device}

    def _choose_fastest(self, fits: dict[str, bool]) -> TierName:
        if self.gpu and fits["device"]:
            return "device"
        return "host" if fits["host"] else "none"

    def _compute_limits(self) -> tuple[float, float]:
        """Computes the bytes that images may take in RAM and on each device.

        Without GPUs, the devices share the RAM.
        """
        ram = self.ram or 0
        return SHARE * ram, SHARE * (self.gpu or ram / self._replicas)

    def _deduct(self, name: TierName, size: int, reason: str) -> Tier:
        """Returns a tier, after subtracting its bytes from those that are free."""
        if name == "none":
            return Tier(name, reason)
        if name == "host":
            self.ram = (self.ram or 0) - size
            return Tier(name, reason)
        is_sharded = size > self._compute_limits()[1]
        part = -(-size // self._replicas) if is_sharded else size
        if self.gpu:
            self.gpu -= part
        else:
            self.ram = (self.ram or 0) - part * self._replicas
        return Tier(name, reason, is_sharded)


def gather_images(images: Images, rows: NDArray[np.int64]) -> Images:
    """Gathers the images of some rows from RAM, black for padding: uint8 `[B, H, W, C]`."""
    if not len(images):
        return np.zeros((len(rows), *images.shape[1:]), np.uint8)
    gathered = images[np.maximum(rows, 0)]
    gathered[rows == PADDING] = 0
    return gathered


class DeviceImages:
    """Decoded images in the memory of the training devices, so that the host sends only row numbers.

    The parts are built one after the other, each on the device of its replica. Memory at the peak: the words
    of all images once on the host, and on each device its own part, without a copy. CPU devices use the
    host's memory itself.

    Building needs no communication between workers: one of them may take longer.

    Args:
        strategy: Strategy of the training.
        words: Images as int64 `[rows, words]` from `allocate_words`, which must not change afterwards.
        shape: Height, width and channels of an image.
        is_sharded: Whether each replica holds `1 / replicas` of the rows. Then they send each other what
            their batches need. Otherwise each replica holds all rows.
    """

    def __init__(
        self,
        strategy: tf.distribute.Strategy,
        words: NDArray[np.int64],
        shape: tuple[int, ...],
        is_sharded: bool = False,
    ) -> None:
        self._shape = shape
        self._replicas = strategy.num_replicas_in_sync if is_sharded else 1
        self._part = count_part_rows(len(words), self._replicas)
        # Tensors instead of a variable of the strategy, whose initial value workers would broadcast.
        self.parts: list[tf.Tensor] = []
        for replica, device in enumerate(list_devices(strategy)):
            first = replica % self._replicas * self._part
            part = words[first : first + self._part]
            if not len(part):
                part = allocate((1, words.shape[1]), np.int64)  # TensorFlow gathers from one row at least
            self.parts.append(copy_to_device(part, device))

    def attach(self, batch: Batch) -> Batch:
        """Adds the images to a batch of row numbers. Must be called in the step of a replica.

        Args:
            batch: Batch without images, with `row` int64 `[B]`.

        Returns:
            The batch with `image` uint8 `[B, H, W, C]`, black for padding.
        """
        rows = batch["row"]
        words = self._gather_words(rows)  # [B, words]
        size = int(np.prod(self._shape))
        pixels = tf.reshape(tf.bitcast(words, tf.uint8), [-1, words.shape[1] * WORD_BYTES])[:, :size]
        return {**batch, "image": tf.reshape(pixels, [-1, *self._shape])}

    def _gather_words(self, rows: tf.Tensor) -> tf.Tensor:
        """Gathers the words of rows, int64 `[B]`, to the replica that calls; zeros for padding."""
        context = tf.distribute.get_replica_context()
        if self._replicas > 1:
            return context.merge_call(self._exchange, args=(rows,))
        replica = int(tf.get_static_value(context.replica_id_in_sync_group))
        # The replicas of a worker have consecutive numbers.
        return self._gather_held(self.parts[replica % len(self.parts)], rows)

    def _exchange(self, strategy: tf.distribute.Strategy, rows: Any) -> Any:
        """Gathers the words of every replica's rows, whichever replicas hold them.

        Each replica gathers all rows that it holds, and sends each other replica those of its batch. A sum by
        the strategy would move twice as much, and split its result, which GPUs cannot do with int64.
        """
        rows_by_replica = strategy.experimental_local_results(rows)
        batch = rows_by_replica[0].shape[0]
        found: list[list[tf.Tensor]] = [[] for _ in self.parts]  # of each replica, by the replicas that hold
        for holder, part in enumerate(self.parts):
            with tf.device(part.device):
                global_rows = tf.concat(rows_by_replica, axis=0)  # [replicas * B]
                words = self._gather_held(part, global_rows - holder * self._part)
                for replica, of_replica in enumerate(found):
                    of_replica.append(words[replica * batch : (replica + 1) * batch])

        sums = []
        for part, of_replica in zip(self.parts, found, strict=True):
            with tf.device(part.device):
                sums.append(tf.add_n(of_replica))  # one of them is not zero
        return strategy.experimental_distribute_values_from_function(
            lambda context: sums[context.replica_id_in_sync_group]
        )

    def _gather_held(self, part: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
        """Gathers the words of rows of a part; zeros for rows outside of it, and for padding."""
        is_held = (rows >= 0) & (rows < self._part)
        words = tf.gather(part, tf.where(is_held, rows, 0))
        return tf.where(is_held[:, None], words, tf.zeros_like(words))


def allocate_words(rows: int, shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Allocates the memory of images in words, int64 `[rows, words]`; see `view_images`."""
    return allocate((rows, -(-int(np.prod(shape)) // WORD_BYTES)), np.int64)


def view_images(words: NDArray[np.int64], shape: tuple[int, ...]) -> Images:
    """Returns the images within words, uint8 `[rows, H, W, C]`, as a view that can be written to."""
    pixels = words.view(np.uint8)[:, : int(np.prod(shape))]  # the rest of the last word stays zero
    return pixels.reshape(len(words), *shape)


def count_part_rows(rows: int, replicas: int) -> int:
    """Counts the rows that each replica holds; the last replicas may hold fewer, or none.

    With one replica it holds all of them. Otherwise it is a multiple of `ALIGNED_ROWS`.
    """
    if replicas == 1:
        return rows
    return -(-rows // (replicas * ALIGNED_ROWS)) * ALIGNED_ROWS


def format_bytes(size: float) -> str:
    """Formats a number of bytes in megabytes, or in gigabytes from 1 GB on."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
