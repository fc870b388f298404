"""The choices about data, written in one place: how shards are made, read and augmented."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipelines.errors import ConfigError
from pipelines.registry import suggest

S = TypeVar("S", bound="Spec")
Positive = Annotated[int, Field(ge=1, strict=True)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0, strict=True)]


class Spec(BaseModel):
    """A frozen group of choices; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ShardSpec(Spec):
    """How a source becomes a shard set.

    Attributes:
        store_size: Longest allowed shorter side in pixels; larger images are scaled down. None keeps them as found.
        shard_rows: Source images per shard.
        validation: Share of the images held out where the source has no validation split.
    """

    store_size: Positive | None = None
    shard_rows: Positive = 256
    validation: Fraction = 0.2


class DataSpec(Spec):
    """How stored images become batches.

    Attributes:
        image_size: Height and width in pixels that every image is resized to.
        channels: 3 for RGB, 1 for greyscale.
    """

    image_size: tuple[Positive, Positive] = (150, 150)
    channels: Literal[1, 3] = 3


class AugmentSpec(Spec):
    """Ranges that random affine parameters are drawn from; every one of them uniform and symmetric.

    Attributes:
        rotation: Largest rotation in degrees, either way.
        shift: Largest shift, as a fraction of height and of width.
        shear: Largest shear angle in degrees.
        zoom: Largest change of scale, as a fraction, per axis.
        flip: Whether every second image is mirrored left to right.
        fill: What lies beyond the edge: the nearest pixel.
    """

    rotation: Annotated[float, Field(ge=0.0, le=180.0, strict=True)] = 0.0
    shift: Annotated[float, Field(ge=0.0, le=1.0, strict=True)] = 0.0
    shear: Annotated[float, Field(ge=0.0, lt=90.0, strict=True)] = 0.0
    zoom: Fraction = 0.0
    flip: bool = False
    fill: Literal["nearest"] = "nearest"


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
        raise ConfigError("a known key", f"{key}={value}", suggest(keys[-1], _group(spec, keys[:-1]).model_fields))
    if first["type"] == "missing":
        raise ConfigError(f"a value for {key}", f"{where} without it", f"add {key}")
    raise ConfigError(f"{key}: {first['msg'][0].lower()}{first['msg'][1:]}", f"{key}={value}", f"give {key} such a value in {where}")


def _group(spec: type[Spec], keys: list[str]) -> type[Spec]:
    """The group of settings that `keys` leads to, for naming the keys it knows."""
    for key in keys:
        field = spec.model_fields[key].annotation
        spec = next(t for t in (field, *get_args(field)) if isinstance(t, type) and issubclass(t, Spec))
    return spec
