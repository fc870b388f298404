"""Data settings: how shards are built, read and augmented."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from pipelines.augment.spec import AugmentSpec
from pipelines.errors import name_multiples
from pipelines.settings import (
    Fraction,
    ImageSize,
    Positive,
    PositiveShare,
    Ratio,
    Share,
    Spec,
    check,
)

__all__ = [
    "AugmentSpec",
    "DataSpec",
    "Fit",
    "Fraction",
    "ImageSize",
    "Positive",
    "PositiveShare",
    "Ratio",
    "ShardSpec",
    "Share",
    "Spec",
    "check",
]


class ShardSpec(Spec):
    """Settings for building a shard set from a source.

    Attributes:
        format: `arrow` (Arrow IPC file) or `tfrecord` (`tf.train.Example`, readable by any
            TensorFlow program).
        encoding: `as-found` keeps the bytes of an image if all decoders agree on its pixels;
            `jpeg:QUALITY`, `png` and `raw` (uint8 pixels) re-encode every image.
        store_size: Longest allowed shorter side in pixels; larger images are scaled down. None: no limit.
        shard_rows: Number of source images per shard. If neither this nor `shard_mb` is set, shards have
            about 96 MB; smaller sets have about 16 train shards, of at least 32 images each.
        shard_mb: Target size of a shard in megabytes (10**6 bytes), used instead of `shard_rows`; the
            number of rows is estimated from a sample of the images.
        validation: Fraction of every class held out if the source has no validation split.
        check: `decode` decodes every image once, which proves it readable; `header` reads only its header.
        levels: Values that become 0 and 255 in images of more than 8 bits: `MIN:MAX`, `full` for the whole
            range, or `auto` for the smallest depth (8 to 16 bits) that holds the first images.
    """

    format: Literal["arrow", "tfrecord"] = "arrow"
    encoding: Annotated[str, Field(pattern=r"^(as-found|jpeg:([1-9]\d?|100)|png|raw)$")] = "as-found"
    store_size: Positive | None = None
    shard_rows: Positive | None = None
    shard_mb: Annotated[float, Field(gt=0.0)] | None = None
    validation: Fraction = 0.2
    check: Literal["decode", "header"] = "decode"
    levels: Annotated[str, Field(pattern=r"^(auto|full|\d{1,5}:\d{1,5})$")] = "full"


Fit = Literal["stretch", "crop", "pad"]
Mix = Annotated[dict[str, Ratio], Field(min_length=1)] | None


class DataSpec(Spec):
    """Settings for reading stored images as batches.

    Attributes:
        image_size: Height and width in pixels that every image is resized to; `96` and `96x96` are accepted.
        channels: 3 for RGB, 1 for greyscale.
        fit: How an image of other proportions becomes one of `image_size`: `stretch` resizes height and width
            on their own, `crop` keeps the proportions and cuts off what protrudes on both sides, `pad` keeps
            the proportions and adds black.
        resize: With `fit: crop`, the length that the shorter side is resized to before the central
            `image_size` is cut out, such as 256 for images of 224; None cuts as little as possible.
        antialias: Whether an image that is made smaller is low-pass filtered first, as Pillow and torchvision
            do. Without it, each pixel of the result comes from four pixels of the image, as in Keras.
        backend: Decoder: `tfdata`, `dali`, or `auto` (DALI if it is installed and a GPU is visible).
        decode: `exact`, or `fast`, which decodes JPEGs at a fraction of their size as long as the result is
            still larger than `image_size`.
        cache: Memory that holds decoded images between epochs: none (`none`), RAM (`host`), accelerator
            memory (`device`), or the fastest of these that fits (`auto`).
        window: Number of shards that are shuffled together, one window after the other; None shuffles all.
        lanes: Number of lanes that the shards are divided into. Each fills its own part of every batch, so
            that a worker reads only the shards of its lanes: about once the set in all, not once for each
            worker. Must divide the batch and the window, and be divisible by the number of workers. The
            order depends on it: 1 is the order without lanes.
        mix: Shard sets to train on, with their weights: `{photos: 0.7, s3://bucket/drawings: 0.3}`. The
            classes must be the same; validation images come from the set named by `--data` alone.
        epoch_images: Images per epoch of a mix; None ends an epoch when the first of the sets has been seen
            once. What an epoch leaves of a set is used by the next ones.
        repeats: Times that an image occurs in an epoch, each time with other random changes (repeated
            augmentation: Hoffer et al., 2019). An epoch has as many examples as without, of a part of the
            images; the next epochs take the others, so that all are used equally often. Not with a mix.
        decode_gb: Memory for the images that a pipeline reads and decodes, in units of 10**9 bytes; batches
            of large images are decoded in parts that fit. A process has one pipeline, or where DALI decodes,
            one for each device, whose memory holds the pixels.
        cache_gb: Largest size of the local cache of shards from an object store, in units of 10**9 bytes;
            None for `GLASSBOX_CACHE_GB`, or a share of the disk.
    """

    image_size: ImageSize = (150, 150)
    channels: Literal[1, 3] = 3
    fit: Fit = "stretch"
    resize: Positive | None = None
    antialias: bool = False
    backend: Literal["auto", "tfdata", "dali"] = "auto"
    decode: Literal["exact", "fast"] = "exact"
    cache: Literal["auto", "none", "host", "device"] = "auto"
    window: Positive | None = None
    lanes: Positive = 1
    mix: Mix = None
    epoch_images: Positive | None = None
    repeats: Positive = 1
    decode_gb: Ratio = 4.0
    cache_gb: Ratio | None = None

    def __hash__(self) -> int:
        """Hashes all settings; TensorFlow and caches need it, and a mix has no hash of its own."""
        return hash(self.model_dump_json())

    @field_validator("resize")
    @classmethod
    def _validate_resize(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is None:
            return value
        if info.data.get("fit") != "crop":
            raise ValueError("a shorter side is only needed for a crop: set data.fit=crop as well")
        longest = max(info.data.get("image_size", (0, 0)))
        if value < longest:
            raise ValueError(
                f"images of {longest} pixels cannot be cut out of {value}: use at least {longest}"
            )
        return value

    @field_validator("lanes")
    @classmethod
    def _validate_lanes(cls, value: int, info: ValidationInfo) -> int:
        window = info.data.get("window")
        if window is not None and window % value:
            sizes = name_multiples(window, value)
            raise ValueError(f"{value} lanes do not divide data.window={window}: use data.window={sizes}")
        return value

    @field_validator("repeats")
    @classmethod
    def _validate_repeats(cls, value: int, info: ValidationInfo) -> int:
        if value > 1 and info.data.get("mix"):
            raise ValueError("images of a mix are not repeated: use data.repeats=1, or leave data.mix out")
        return value

    @field_validator("epoch_images")
    @classmethod
    def _validate_epoch_images(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and not info.data.get("mix"):
            raise ValueError("only the epochs of a mix have a number of images: set data.mix as well")
        return value
