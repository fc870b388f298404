"""`glassbox.Dataset`: one split of a shard set as batches, for `tf.data` and NumPy."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pipelines.errors import ConfigError
from pipelines.remote.files import resolve_location
from pipelines.spec import AugmentSpec, DataSpec, check

if TYPE_CHECKING:
    import numpy as np
    import tensorflow as tf

    from pipelines.records import Batch


class Dataset:
    """One split as batches, in exactly the order and form that training uses.

    Every batch is a dict: `image` `[B, H, W, C]` (uint8, or float32 if augmented), `label` int32 `[B]`,
    `weight` float32 `[B]` (0 marks padding of the last batch), `row` int64 `[B]` (-1 for padding).

    Args:
        shards: Shard set, or path or URI of one.
        split: Name of the split.
        batch_size: Examples per batch.
        seed: Seed of the shuffle; None keeps the stored order.
        augment: Augmentation, an `AugmentSpec` or its settings as a dict; needs a seed.
        data: Settings of `DataSpec`, such as `image_size=96` or `channels=1`.

    Attributes:
        classes: Class names; labels are indices into them.
        rows: Number of examples.

    Raises:
        ConfigError: An option is invalid.
        DataError: The shard set cannot be used.
    """

    def __init__(
        self,
        shards: str | os.PathLike[str],
        split: str = "train",
        *,
        batch_size: int = 32,
        seed: int | None = None,
        augment: AugmentSpec | Mapping[str, Any] | None = None,
        **data: Any,
    ) -> None:
        from pipelines.input.batches import Batches
        from service.devices import configure_devices

        if isinstance(batch_size, bool) or not isinstance(batch_size, int):
            received = f"batch_size={batch_size!r}"
            raise ConfigError("a whole number of examples per batch", received, "write batch_size=32")
        if augment is not None and not isinstance(augment, AugmentSpec):
            augment = check(AugmentSpec, dict(augment), "augment")
        configure_devices()
        self._augment = augment
        self._batches = Batches(
            resolve_location(shards),
            split,
            check(DataSpec, data, "Dataset"),
            batch_size,
            seed=seed,
            augment=augment,
        )
        self.classes = self._batches.classes
        self.rows = self._batches.rows

    def __len__(self) -> int:
        """Number of batches per epoch."""
        return self._batches.steps

    def tf_data(self, epoch: int = 0) -> tf.data.Dataset:
        """Returns the batches of an epoch as a `tf.data.Dataset`.

        Args:
            epoch: Number of the epoch, from 0; it determines the order and the augmentation.
        """
        import tensorflow as tf

        from pipelines.input.tfdata import disable_autotuning

        batches = self._batches.epoch(epoch)
        if not isinstance(batches, tf.data.Dataset):  # DALI yields eager tensors
            first = next(iter(self._batches.epoch(epoch)))
            signature = {name: tf.TensorSpec.from_tensor(value) for name, value in first.items()}
            batches = disable_autotuning(
                tf.data.Dataset.from_generator(lambda: self._batches.epoch(epoch), output_signature=signature)
            )
        if self._augment is None:
            return batches
        return batches.map(self._apply_augmentation)

    def numpy(self, epoch: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """Yields the batches of an epoch as dicts of NumPy arrays.

        Args:
            epoch: Number of the epoch, from 0; it determines the order and the augmentation.

        Raises:
            DataError: An image cannot be decoded.
        """
        with self._batches.data_errors():
            for batch in self.tf_data(epoch):
                yield {name: value.numpy() for name, value in batch.items()}

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """Yields the batches of epoch 0 as dicts of NumPy arrays."""
        return self.numpy()

    def _apply_augmentation(self, batch: Batch) -> dict[str, tf.Tensor]:
        """Applies the augmentation of a batch, as the training step does on the device."""
        from pipelines.augment.apply import apply_augmentations

        images, _ = apply_augmentations(self._batches.attach(batch), self._augment)
        labels = {name: batch[name] for name in ("label", "weight", "row")}
        return {"image": images} | labels
