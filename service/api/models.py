"""Loads any Keras image classifier, evaluates it and predicts with it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.remote.files import resolve_location
from pipelines.remote.uri import Location, Uri
from service.failures import translate_failures

if TYPE_CHECKING:
    import keras
    import pyarrow as pa

    from pipelines.spec import Fit
    from service.inference.evaluate import Evaluation
    from service.inference.interpretation import Head


@translate_failures()
def load_model(path: str | os.PathLike[str] | Uri, custom_objects: Sequence[str] = ()) -> keras.Model:
    """Loads the model of a run, or any model file, in safe mode.

    Args:
        path: A run, or path or URI of a run directory or of a `.keras` file.
        custom_objects: `package.module` or `FILE.py` that defines the custom layers of the model; their code
            is imported.

    Raises:
        ConfigError: The model does not exist, needs code to be executed, or has custom layers that are not
            defined.
    """
    from service.inference.jobs import fetch_model, open_model

    return open_model(fetch_model(resolve_location(path)), custom_objects)[1]


@translate_failures()
def evaluate(  # noqa: PLR0913 (keyword options of a public function)
    model: str | os.PathLike[str] | Uri,
    data: str | os.PathLike[str] | Uri,
    split: str = "validation",
    *,
    scale: float | None = None,
    offset: float | None = None,
    head: Head | None = None,
    fit: Fit | None = None,
    resize: int | None = None,
    antialias: bool = False,
    tta: str = "none",
    workers: int | None = None,
    custom_objects: Sequence[str] = (),
) -> Evaluation:
    """Evaluates a model on a split of a shard set. Shows a progress bar.

    Args:
        model: A run, or path or URI of a run directory or of a model file made anywhere.
        data: Shard set, or path or URI of one.
        split: Name of the split.
        scale: Factor on pixels of 0 to 255 before they enter the model; None infers it.
        offset: Summand after the multiplication; requires `scale`.
        head: Whether the outputs are `probabilities` or `logits`; None infers it.
        fit: How images of other proportions are made to fit: `stretch`, `crop` or `pad`; None for what the
            model was trained with, or `stretch` if that is not known.
        resize: With `fit` crop, the length that the shorter side is resized to before the crop.
        antialias: With `fit`, whether images that are made smaller are low-pass filtered.
        tta: Test-time augmentation, `none` or `flip`.
        workers: Maximum number of Ray tasks; None for this process alone, or for the cluster at
            `RAY_ADDRESS`.
        custom_objects: Modules with the custom layers of the model, see `load_model`.

    Returns:
        Accuracy, loss, top-5 accuracy, AUC and confusion matrix; `notes` says how the model was interpreted.

    Raises:
        ConfigError: The model cannot be used, or does not fit the shard set.
        DataError: The shard set cannot be used, or an image cannot be decoded.
    """
    from service.inference.evaluate import evaluate as evaluate_model
    from service.inference.options import PredictOptions

    return evaluate_model(
        str(resolve_location(model)),
        _name_data(data),
        split,
        options=PredictOptions(scale, tta, offset, head, fit, resize, antialias),
        workers=workers,
        custom_objects=custom_objects,
    )


@translate_failures()
def predict(  # noqa: PLR0913 (keyword options of a public function)
    model: str | os.PathLike[str] | Uri,
    data: str | os.PathLike[str] | Uri,
    *,
    split: str | None = None,
    classes: Sequence[str] | None = None,
    scale: float | None = None,
    offset: float | None = None,
    head: Head | None = None,
    fit: Fit | None = None,
    resize: int | None = None,
    antialias: bool = False,
    tta: str = "none",
    workers: int | None = None,
    custom_objects: Sequence[str] = (),
) -> pa.Table:
    """Predicts every image of a shard set or source. Shows a progress bar.

    Args:
        model: A run, or path or URI of a run directory or of a model file made anywhere.
        data: Shard set, or path or URI of one, or a source such as `photos:DIR`.
        split: Name of the split; None for all of them.
        classes: Class names; None for those of the model, else `class_0`, `class_1` and so on.
        scale: Factor on pixels of 0 to 255 before they enter the model; None infers it.
        offset: Summand after the multiplication; requires `scale`.
        head: Whether the outputs are `probabilities` or `logits`; None infers it.
        fit: How images of other proportions are made to fit: `stretch`, `crop` or `pad`; None for what the
            model was trained with, or `stretch` if that is not known.
        resize: With `fit` crop, the length that the shorter side is resized to before the crop.
        antialias: With `fit`, whether images that are made smaller are low-pass filtered.
        tta: Test-time augmentation, `none` or `flip`.
        workers: Maximum number of Ray tasks; None for this process alone, or for the cluster at
            `RAY_ADDRESS`.
        custom_objects: Modules with the custom layers of the model, see `load_model`.

    Returns:
        An Arrow table: `id`, `class`, and one float32 column of probabilities per class. Images that cannot
        be decoded have no row. The entry `glassbox` of its metadata says how the model was interpreted.

    Raises:
        ConfigError: The model, the data or the class names cannot be used.
        DataError: The data is damaged, or no image can be decoded.
    """
    from pyarrow import parquet

    from service.inference.options import PredictOptions
    from service.inference.predict import predict as predict_to_file

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "predictions.parquet"
        predict_to_file(
            str(resolve_location(model)),
            _name_data(data),
            out,
            split=split,
            classes=classes,
            options=PredictOptions(scale, tta, offset, head, fit, resize, antialias),
            workers=workers,
            custom_objects=custom_objects,
        )
        return parquet.read_table(out)


@translate_failures()
def export(  # noqa: PLR0913 (keyword options of a public function)
    model: str | os.PathLike[str] | Uri,
    format: str = "savedmodel",
    out: str | os.PathLike[str] | Uri | None = None,
    *,
    fitted: bool = False,
    classes: Sequence[str] | None = None,
    scale: float | None = None,
    offset: float | None = None,
    head: Head | None = None,
    fit: Fit | None = None,
    resize: int | None = None,
    antialias: bool = False,
    custom_objects: Sequence[str] = (),
) -> Location:
    """Exports a model with its preprocessing and class names, and a model card beside it.

    The file takes decoded images, uint8, and returns probabilities. It is compared with the model before it
    appears at `out`.

    Args:
        model: A run, or path or URI of a run directory or of a model file made anywhere.
        format: `savedmodel`, `onnx` (with the extra `onnx`) or `tflite`.
        out: Directory to create, or its URI; None for `exports/NAME-FORMAT`.
        fitted: Leave out the entry for images of any size, for runtimes that need fixed shapes.
        classes: Class names; None for those of the model, else `class_0`, `class_1` and so on.
        scale: Factor on pixels of 0 to 255 before they enter the model; None infers it.
        offset: Summand after the multiplication; requires `scale`.
        head: Whether the outputs are `probabilities` or `logits`; None infers it.
        fit: How images of other proportions are made to fit: `stretch`, `crop` or `pad`; None for what the
            model was trained with, or `stretch` if that is not known.
        resize: With `fit` crop, the length that the shorter side is resized to before the crop.
        antialias: With `fit`, whether images that are made smaller are low-pass filtered.
        custom_objects: Modules with the custom layers of the model, see `load_model`.

    Returns:
        Path or URI of the exported file, or of the folder of a SavedModel.

    Raises:
        ConfigError: The model or the format cannot be used, `out` exists, or the answers differ.
    """
    from service.export.job import ExportRequest, export_model
    from service.inference.options import PredictOptions

    request = ExportRequest(
        model=resolve_location(model),
        format=format,
        is_fitted=fitted,
        classes=None if classes is None else tuple(classes),
        options=PredictOptions(scale, "none", offset, head, fit, resize, antialias),
        custom_objects=tuple(custom_objects),
    )
    return export_model(request, None if out is None else resolve_location(out)).file


def _name_data(data: str | os.PathLike[str] | Uri) -> str:
    """Returns the text for a path, a URI or the name of a source."""
    return str(data) if isinstance(data, Uri) else os.fspath(data)
