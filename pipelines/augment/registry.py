"""Lists the augmentations of this package, and finds those of other packages and of users."""

from __future__ import annotations

from functools import cache

from pipelines.augment.base import (
    Augmentation,
    ColourAugmentation,
    GeometricAugmentation,
    MixingAugmentation,
    PixelAugmentation,
)
from pipelines.augment.brightness import Brightness
from pipelines.augment.contrast import Contrast
from pipelines.augment.crop import Crop
from pipelines.augment.cutmix import Cutmix
from pipelines.augment.erase import Erase
from pipelines.augment.fill import Fill
from pipelines.augment.flips import Flips
from pipelines.augment.hue import Hue
from pipelines.augment.mixup import Mixup
from pipelines.augment.randaugment import RandAugmentColour, RandAugmentGeometry
from pipelines.augment.rotation import Rotation
from pipelines.augment.saturation import Saturation
from pipelines.augment.shear import Shear
from pipelines.augment.shift import Shift
from pipelines.augment.size import Size
from pipelines.augment.zoom import Zoom
from pipelines.errors import ConfigError
from pipelines.plugins import is_reference, load_reference
from pipelines.registry import Registry

# In the order of their fields in `AugmentSpec`. Those of one kind are composed and applied in this order too.
AUGMENTATIONS: tuple[type[Augmentation], ...] = (
    Rotation,
    Shift,
    Shear,
    Zoom,
    Flips,
    Crop,
    Fill,
    Brightness,
    Contrast,
    Saturation,
    Hue,
    RandAugmentGeometry,
    RandAugmentColour,
    Erase,
    Mixup,
    Cutmix,
    Size,
)
EXTENSIONS: Registry[type[Augmentation]] = Registry("augmentation", group="glassbox.augmentations")
KINDS = (GeometricAugmentation, ColourAugmentation, PixelAugmentation, MixingAugmentation)
# Names of arrays in a batch that are not the parameters of a single augmentation.
BATCH_KEYS = ("image", "label", "weight", "row", "affine", "colour", "encoded", "shape", "window", "target")


def load_extension(key: str) -> type[Augmentation]:
    """Returns the class of an augmentation that is not part of this package.

    Args:
        key: Name of an entry point of the group `glassbox.augmentations`, `file.py:CLASS` or
            `package.module:CLASS`.

    Raises:
        ConfigError: The class does not exist, cannot be imported, or is not an augmentation.
    """
    extension = load_reference(key, EXTENSIONS.kind) if is_reference(key) else _load_installed(key)
    if not isinstance(extension, type) or not issubclass(extension, KINDS):
        names = ", ".join(kind.__name__ for kind in KINDS)
        raise ConfigError(
            f"a class that derives from {names}",
            f"augment.{key}={getattr(extension, '__name__', extension)}",
            "see pipelines/augment/base.py",
        )
    reserved = set(BATCH_KEYS).union(*(_list_names(augmentation) for augmentation in AUGMENTATIONS))
    for name in _list_names(extension):
        if name in reserved:
            raise ConfigError(
                "an augmentation with a name of its own",
                f"augment.{key} with name={name}",
                "set another `name` in the class",
            )
    return extension


@cache
def _load_installed(key: str) -> type[Augmentation]:
    """Loads an installed entry point. Cached, because searching the metadata of all packages takes time."""
    return EXTENSIONS.get(key)


def _list_names(augmentation: type[Augmentation]) -> set[str]:
    """Returns the names of an augmentation on pages and in batches."""
    if issubclass(augmentation, MixingAugmentation):
        return {augmentation.name, augmentation.key}
    return {augmentation.name}
