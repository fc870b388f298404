"""The formats of an export: what each one writes, holds and needs. Does not import TensorFlow."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from pipelines.errors import ConfigError, suggest

ANY_SIZE = "serving_default"  # the entry that takes images of any size, and fits them itself
FITTED = "fitted"  # the entry that takes images that have been fitted to the size of the model
CLASSES_FILE = "classes.txt"


@dataclass(frozen=True)
class ExportFormat:
    """One format.

    Attributes:
        name: Name on the command line.
        title: Name in a model card.
        file: File or folder that it writes.
        packages: Packages that it imports besides TensorFlow.
        extra: Extra of glassbox that installs these packages.
        has_several_entries: Whether one file can hold both an entry for images of any size and one for fitted
            images.
        is_float32: Whether it is exported in float32 because the format, or its runtimes on CPUs, lack
            operations in half precision.
    """

    name: str
    title: str
    file: str
    packages: tuple[str, ...] = ()
    extra: str = ""
    has_several_entries: bool = True
    is_float32: bool = True

    def list_entries(self, is_fitted: bool) -> tuple[str, ...]:
        """Returns the names of the entries of an export.

        Args:
            is_fitted: Whether the entry for images of any size is left out.
        """
        if is_fitted:
            return (FITTED,)
        return (ANY_SIZE, FITTED) if self.has_several_entries else (ANY_SIZE,)

    def check_installed(self) -> None:
        """Checks that the packages of the format are installed, without importing them.

        Raises:
            ConfigError: One is missing.
        """
        missing = [name for name in self.packages if find_spec(name) is None]
        if missing:
            raise ConfigError(
                f"the packages that write {self.title}",
                f"format={self.name} ({', '.join(missing)} not installed)",
                f"install the extra {self.extra}: pip install 'glassbox-train[{self.extra}]'",
            )


FORMATS = {
    export_format.name: export_format
    for export_format in (
        ExportFormat("savedmodel", "TensorFlow SavedModel", "model", is_float32=False),
        ExportFormat(
            "onnx",
            "ONNX",
            "model.onnx",
            packages=("tf2onnx", "onnxruntime"),
            extra="onnx",
            has_several_entries=False,
        ),
        ExportFormat("tflite", "TensorFlow Lite (LiteRT)", "model.tflite"),
    )
}


def get_format(name: str) -> ExportFormat:
    """Returns a format by its name.

    Raises:
        ConfigError: There is no such format.
    """
    if name not in FORMATS:
        raise ConfigError(" or ".join(FORMATS), f"format={name}", suggest(name, FORMATS))
    return FORMATS[name]
