"""Lists the augmentations of this package, and finds those of other packages and of users."""

from __future__ import annotations

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
from pipelines.augment.rotation import Rotation
from pipelines.augment.saturation import Saturation
from pipelines.augment.shear import Shear
from pipelines.augment.shift import Shift
from pipelines.augment.size import Size
from pipelines.augment.zoom import Zoom
from pipelines.errors import ConfigError
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
    Erase,
    Mixup,
    Cutmix,
    Size,
)
EXTENSIONS: Registry[type[Augmentation]] = Registry("augmentation", group="glassbox.augmentations")
KINDS = (GeometricAugmentation, ColourAugmentation, PixelAugmentation, MixingAugmentation)
BATCH_KEYS = (
    "image",
    "label",
    "weight",
    "row",
    "affine",
    "colour",
    "encoded",
    "shape",
)  # not to be overwritten


def load_extension(key: str) -> type[Augmentation]:
    """Returns the class of an augmentation that is not part of this package.

    Args:
        key: Name of an entry point of the group `glassbox.augmentations`, `file.py:CLASS` or
            `package.module:CLASS`.

    Raises:
        ConfigError: There is none, it cannot be imported, or it is no augmentation.
    """
    extension = EXTENSIONS.get(key)
    received = f"augment.{key}={getattr(extension, '__name__', extension)}"
    if not isinstance(extension, type) or not issubclass(extension, KINDS):
        names = ", ".join(kind.__name__ for kind in KINDS)
        raise ConfigError(
            f"a class that derives from one of {names}", received, "see pipelines/augment/base.py"
        )
    taken = [*BATCH_KEYS, *(augmentation.name for augmentation in AUGMENTATIONS)]
    taken += [a.key for a in AUGMENTATIONS if issubclass(a, MixingAugmentation)]
    name = getattr(extension, "key", None)
    if extension.name in taken or name in taken:
        raise ConfigError(
            "an augmentation with a name of its own",
            f"{received} with name={extension.name}",
            "set another `name` in the class",
        )
    return extension
