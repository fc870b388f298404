"""The base class of all settings, the types of their values, and the validation of user input."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from pipelines.errors import ConfigError, suggest

S = TypeVar("S", bound="Spec")
Positive = Annotated[int, Field(ge=1, strict=True)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0, strict=True)]
Share = Annotated[float, Field(ge=0.0, le=1.0, strict=True)]
PositiveShare = Annotated[float, Field(gt=0.0, le=1.0, strict=True)]
Ratio = Annotated[float, Field(gt=0.0, strict=True)]


def parse_image_size(value: Any) -> Any:
    """Turns `96` and `"96x64"` (height x width) into a pair; leaves the sides of a pair to pydantic."""
    if isinstance(value, int) and not isinstance(value, bool):
        return (value, value)
    if isinstance(value, list | tuple) and len(value) == 2:
        return value
    sides = value.lower().split("x") if isinstance(value, str) else []
    if len(sides) in (1, 2) and all(side.strip().isdecimal() for side in sides):
        return (int(sides[0]), int(sides[-1]))
    raise ValueError("an image size is SIDE, HEIGHTxWIDTH or [HEIGHT, WIDTH] in pixels")


def check_relative_path(value: str) -> str:
    """Returns a path unchanged if it stays below the folder that it is relative to.

    Raises:
        ValueError: It is absolute, or leads out of the folder; pydantic expects this exception.
    """
    parts = value.replace("\\", "/").split("/")
    if not all(parts) or {".", ".."} & set(parts) or "\0" in value:
        raise ValueError("a name may not lead out of its folder")
    return value


def check_plain_name(value: str) -> str:
    """Returns the name of a file unchanged if it has no folder.

    Raises:
        ValueError: It has one; pydantic expects this exception.
    """
    if "/" in value or "\\" in value:
        raise ValueError("a name may not lead out of its folder")
    return check_relative_path(value)


RelativePath = Annotated[str, AfterValidator(check_relative_path)]
PlainName = Annotated[str, AfterValidator(check_plain_name)]
ImageSize = Annotated[tuple[Positive, Positive], BeforeValidator(parse_image_size)]


class Spec(BaseModel):
    """A frozen group of settings; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def find_group(cls, key: str) -> type[Spec]:
        """Returns the spec of a group of settings.

        Args:
            key: Field whose value is a spec, an optional spec or a list of specs.
        """
        annotation = cls.model_fields[key].annotation
        candidates = (annotation, *get_args(annotation))
        return next(t for t in candidates if isinstance(t, type) and issubclass(t, Spec))

    @classmethod
    def list_keys(cls) -> tuple[str, ...]:
        """Returns the keys that an error message may suggest in place of an unknown one."""
        return tuple(cls.model_fields)


def check(spec: type[S], settings: dict[str, Any], where: str) -> S:
    """Validates settings against a spec.

    Args:
        spec: Class of the result.
        settings: Values by key, groups nested.
        where: Origin of the settings, such as `config.yaml`, for the error message.

    Raises:
        ConfigError: A key is unknown or missing, or a value has the wrong type; names the first such key.
    """
    try:
        return spec.model_validate(settings)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    keys = [str(part) for part in first["loc"]]
    key = ".".join(keys)
    value = repr(first["input"])
    if first["type"] == "extra_forbidden":
        known = _find_group(spec, keys[:-1]).list_keys()
        raise ConfigError("a known key", f"{key}={value}", suggest(keys[-1], known))
    if first["type"] == "missing":
        raise ConfigError(f"a value for {key}", f"{where} without it", f"add {key}")
    if first["type"] == "model_type":
        group = _find_group(spec, keys).list_keys()
        fix = f"set them one by one, such as {key}.{group[0]}=VALUE, or leave {key} out"
        raise ConfigError(f"{key} as a group of settings: {', '.join(group)}", f"{key}={value}", fix)
    reason = first["msg"].removeprefix("Value error, ")
    raise ConfigError(
        f"{key}: {reason[0].lower()}{reason[1:]}",
        f"{key}={value}",
        f"give {key} such a value in {where}",
    )


def _find_group(spec: type[Spec], keys: list[str]) -> type[Spec]:
    """Returns the group of settings that `keys` leads to."""
    for key in keys:
        if not key.isdigit():  # a position in a list of groups
            spec = spec.find_group(key)
    return spec
