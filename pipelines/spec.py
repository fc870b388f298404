"""The choices about data, written in one place: how shards are made, read and augmented."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipelines.errors import ConfigError, suggest

S = TypeVar("S", bound="Spec")
Positive = Annotated[int, Field(ge=1, strict=True)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0, strict=True)]
Share = Annotated[float, Field(ge=0.0, le=1.0, strict=True)]
PositiveShare = Annotated[float, Field(gt=0.0, le=1.0, strict=True)]
Ratio = Annotated[float, Field(gt=0.0, strict=True)]


class Spec(BaseModel):
    """A frozen group of choices; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ShardSpec(Spec):
    """How a source becomes a shard set.

    Attributes:
        format: `arrow` (Arrow IPC file, mapped into memory) or `tfrecord` (`tf.train.Example`, readable by any TensorFlow program).
        encoding: `as-found` keeps the bytes wherever every decoder reads them alike; `jpeg:QUALITY`, `png` and
            `raw` (uint8 pixels) encode every image again.
        store_size: Longest allowed shorter side in pixels; larger images are scaled down. None keeps them as found.
        shard_rows: Source images per shard.
        shard_mb: Instead, the size to aim at, in megabytes (10**6 bytes), judged by the first images.
        validation: Share of the images held out where the source has no validation split.
        check: `decode` decodes every image once, which proves it readable; `header` only reads its header.
    """

    format: Literal["arrow", "tfrecord"] = "arrow"
    encoding: Annotated[str, Field(pattern=r"^(as-found|jpeg:([1-9]\d?|100)|png|raw)$")] = "as-found"
    store_size: Positive | None = None
    shard_rows: Positive = 256
    shard_mb: Annotated[float, Field(gt=0.0)] | None = None
    validation: Fraction = 0.2
    check: Literal["decode", "header"] = "decode"


class DataSpec(Spec):
    """How stored images become batches.

    Attributes:
        image_size: Height and width in pixels that every image is resized to.
        channels: 3 for RGB, 1 for greyscale.
        backend: What decodes: `tfdata`, `dali`, or `auto` (DALI where it and a GPU are there).
        decode: `exact`, or `fast`: JPEGs are decoded at a fraction of their size where that is still larger than `image_size`.
        cache: Where decoded images are kept: nowhere (`none`), in RAM (`host`), in accelerator memory (`device`), or the
            fastest that fits (`auto`).
        window: Shards that are shuffled together, read one window after the other; None for all of them at once.
    """

    image_size: tuple[Positive, Positive] = (150, 150)
    channels: Literal[1, 3] = 3
    backend: Literal["auto", "tfdata", "dali"] = "auto"
    decode: Literal["exact", "fast"] = "exact"
    cache: Literal["auto", "none", "host", "device"] = "auto"
    window: Positive | None = None


class AugmentSpec(Spec):
    """Ranges that random changes of training images are drawn from; uniform and symmetric where nothing else is said.

    Geometry becomes one affine matrix per image, colour one linear map, so that each costs one pass however many are on.

    Attributes:
        rotation: Largest rotation in degrees, either way.
        shift: Largest shift, as a fraction of height and of width.
        shear: Largest shear angle in degrees.
        zoom: Largest change of scale, as a fraction, per axis.
        flip: Whether every second image is mirrored left to right.
        flip_vertical: Whether every second image is mirrored top to bottom.
        crop: Random resized crop: smallest and largest share of the area that is shown; None for the whole image.
        crop_ratio: Smallest and largest width over height of the crop, drawn uniformly in the logarithm.
        fill: What lies beyond the edge: the `nearest` pixel, the image mirrored (`reflect`) or repeated (`wrap`), or `constant`.
        fill_value: Pixel value beyond the edge with `constant`, and of erased boxes, 0 to 255.
        brightness: Largest change of brightness, as a fraction of the value.
        contrast: Largest change of contrast about the middle grey, as a fraction.
        saturation: Largest change of saturation, as a fraction; 1 reaches grey.
        hue: Largest turn of the hue, in degrees.
        erase: Probability that a box of an image is blotted out (random erasing).
        mixup: Parameter of the Beta distribution of the blend of two images; 0 for none.
        cutmix: Parameter of the Beta distribution of the area that a box of another image covers; 0 for none.
        size: Height and width in pixels of what all this makes, so of the images that are learned from; None for those of `image_size`.
            Crops enlarge what they show, so a network that learned from smaller ones sees objects of the same size in whole images
            (Touvron et al., "Fixing the train-test resolution discrepancy", 2019). Bilinear, not antialiased; keep width over height.
    """

    rotation: Annotated[float, Field(ge=0.0, le=180.0, strict=True)] = 0.0
    shift: Share = 0.0
    shear: Annotated[float, Field(ge=0.0, lt=90.0, strict=True)] = 0.0
    zoom: Fraction = 0.0
    flip: bool = False
    flip_vertical: bool = False
    crop: tuple[PositiveShare, PositiveShare] | None = None
    crop_ratio: tuple[Ratio, Ratio] = (3 / 4, 4 / 3)
    fill: Literal["nearest", "reflect", "constant", "wrap"] = "nearest"
    fill_value: Annotated[float, Field(ge=0.0, le=255.0, strict=True)] = 0.0
    brightness: Fraction = 0.0
    contrast: Fraction = 0.0
    saturation: Share = 0.0
    hue: Annotated[float, Field(ge=0.0, le=180.0, strict=True)] = 0.0
    erase: Share = 0.0
    mixup: Share = 0.0
    cutmix: Share = 0.0
    size: tuple[Positive, Positive] | None = None


def check(spec: type[S], settings: dict[str, Any], where: str) -> S:
    """Checks settings against a spec.

    Args:
        spec: The kind of spec.
        settings: Its values, groups nested.
        where: Where the settings come from, for the error message.

    Raises:
        ConfigError: Naming the first key that is unknown, missing or of the wrong type.
    """
    try:
        return spec.model_validate(settings)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    keys = [str(part) for part in first["loc"]]
    key, value = ".".join(keys), repr(first["input"])
    if first["type"] == "extra_forbidden":
        raise ConfigError(
            "a known key", f"{key}={value}", suggest(keys[-1], _group(spec, keys[:-1]).model_fields)
        )
    if first["type"] == "missing":
        raise ConfigError(f"a value for {key}", f"{where} without it", f"add {key}")
    raise ConfigError(
        f"{key}: {first['msg'][0].lower()}{first['msg'][1:]}",
        f"{key}={value}",
        f"give {key} such a value in {where}",
    )


def _group(spec: type[Spec], keys: list[str]) -> type[Spec]:
    """The group of settings that `keys` leads to, for naming the keys it knows."""
    for key in keys:
        if key.isdigit():  # a place in a list of groups
            continue
        field = spec.model_fields[key].annotation
        spec = next(t for t in (field, *get_args(field)) if isinstance(t, type) and issubclass(t, Spec))
    return spec
