"""The settings of all augmentations, `AugmentSpec`, assembled from the files that define them."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Self

from pydantic import ConfigDict, Field, ValidationError, create_model, model_validator
from pydantic_core import InitErrorDetails
from typing_extensions import override

from pipelines.augment.base import Augmentation
from pipelines.augment.registry import AUGMENTATIONS, EXTENSIONS, load_extension
from pipelines.errors import ConfigError
from pipelines.plugins import is_reference
from pipelines.settings import Spec

# The bases in reverse: pydantic lists the fields of the last one first.
_AllSettings: Any = create_model(
    "_AllSettings", __base__=tuple(augmentation.Settings for augmentation in reversed(AUGMENTATIONS))
)


class AugmentSpec(_AllSettings):  # type: ignore[misc]
    """Ranges that random changes of training images are drawn from; uniform and symmetric unless noted.

    Geometry becomes one affine matrix per image and colour one linear map, so that each costs one pass
    however many changes are on.

    A key that is no attribute below refers to an augmentation from outside this package: the name of an entry
    point of the group `glassbox.augmentations`, `file.py:CLASS` or `package.module:CLASS`. Its value holds
    the settings of that class: `true` selects their defaults, `false` and null turn the augmentation off.
    """

    model_config = ConfigDict(extra="allow")

    @model_validator(mode="after")
    def _validate_extensions(self) -> Self:
        """Validates the settings of augmentations from outside, and completes them with their defaults."""
        settings = self.__pydantic_extra__ or {}
        for key, value in list(settings.items()):
            if value is None or value is False:
                del settings[key]
            else:
                settings[key] = _validate_extension(key, value)
        _check_names([load_extension(key) for key in settings])
        return self

    @property
    def extensions(self) -> dict[str, dict[str, Any]]:
        """Settings of the augmentations from outside this package, by the key that refers to each."""
        return dict(self.__pydantic_extra__ or {})

    def list_changed(self) -> list[tuple[str, Any]]:
        """Returns keys and values of the settings that differ from their defaults."""
        defaults = AugmentSpec()
        keys = [key for key in type(self).model_fields if getattr(self, key) != getattr(defaults, key)]
        return [*((key, getattr(self, key)) for key in keys), *self.extensions.items()]

    @classmethod
    @override
    def find_group(cls, key: str) -> type[Spec]:
        return load_extension(key).Settings

    @classmethod
    @override
    def list_keys(cls) -> tuple[str, ...]:
        return (*cls.model_fields, *EXTENSIONS.names())


AugmentSpec.__doc__ = "\n".join(
    [
        f"{AugmentSpec.__doc__}",
        "    Attributes:",
        *(f"        {name}: {field.description}" for name, field in AugmentSpec.model_fields.items()),
    ]
)


def list_augmentations(spec: AugmentSpec) -> tuple[Augmentation, ...]:
    """Returns all augmentations, on or off, those of this package first.

    Equal settings yield the same objects, so that TensorFlow does not trace their functions again.
    """
    # Loaded on every call, because a user may have edited the file.
    extensions = tuple(load_extension(key) for key in spec.extensions)
    return _build_augmentations(spec, extensions)


def list_active(spec: AugmentSpec, channels: int) -> tuple[Augmentation, ...]:
    """Returns the augmentations that are on, for images with some number of channels."""
    return tuple(a for a in list_augmentations(spec) if a.is_on() and channels in a.channels)


@lru_cache(maxsize=256)
def _build_augmentations(
    spec: AugmentSpec, extensions: tuple[type[Augmentation], ...]
) -> tuple[Augmentation, ...]:
    augmentations = [augmentation(spec) for augmentation in AUGMENTATIONS]
    for extension, settings in zip(extensions, spec.extensions.values(), strict=True):
        augmentations.append(extension(extension.Settings.model_validate(settings)))
    return tuple(augmentations)


def _validate_extension(key: str, value: Any) -> dict[str, Any]:
    """Validates the settings of one augmentation from outside.

    Returns:
        The settings with their defaults, as plain values that YAML and JSON can hold.

    Raises:
        ConfigError: The augmentation cannot be loaded.
        ValidationError: The key or a setting is unknown.
    """
    if not is_reference(key) and key not in EXTENSIONS.names():
        unknown = InitErrorDetails(type="extra_forbidden", loc=(key,), input=value)
        raise ValidationError.from_exception_data("AugmentSpec", [unknown])
    # A model with one field, so that the key is part of the location in an error.
    field: Any = (load_extension(key).Settings, Field(alias=key))
    holder: Any = create_model("Extension", settings=field)
    settings = {} if value is True else value
    validated: dict[str, Any] = holder.model_validate({key: settings}).settings.model_dump(mode="json")
    return validated


def _check_names(extensions: list[type[Augmentation]]) -> None:
    """Checks that no two augmentations would draw the same numbers.

    Raises:
        ConfigError: Two of them have the same name.
    """
    names = [extension.name for extension in extensions]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                "augmentations with different names", f"name={name} twice", "set another `name` in one class"
            )
