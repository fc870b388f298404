"""Builds `model-card.md`: what an exported model takes and returns, how good it is, where it comes from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.spec import DataSpec
from service.export.formats import ANY_SIZE, FITTED, ExportFormat
from service.export.verify import HALF_TOLERANCE, TOLERANCE, Comparison
from service.inference.interpretation import ImageFit
from service.models.metadata import ModelMetadata

MAX_CLASSES = 50  # listed in the card; the export holds all of them
COLOURS = {1: "grey", 3: "red, green, blue"}
USES = {
    "savedmodel": (
        "model = tf.saved_model.load('{file}')",
        "outputs = model.signatures['{entry}'](images=images)",
        "outputs['probabilities'], outputs['class']",
    ),
    "onnx": (
        "session = onnxruntime.InferenceSession('{file}')",
        "(probabilities,) = session.run(['probabilities'], {{'images': images}})",
        "classes = json.loads(session.get_modelmeta().custom_metadata_map['classes'])",
    ),
    "tflite": (
        "interpreter = Interpreter(model_path='{file}')  # ai_edge_litert.interpreter, or tf.lite",
        "outputs = interpreter.get_signature_runner('{entry}')(images=images)",
        "classes = zipfile.ZipFile('{file}').read('classes.txt').decode().splitlines()",
    ),
}


@dataclass(frozen=True)
class Origin:
    """Where a model comes from.

    Attributes:
        name: Name of the run or of the model file.
        model_digest: SHA-256 of the model file.
        accuracy: Accuracy, with split and number of images, as a sentence.
        data: The shard set that it was trained on, as a sentence.
        recipe: How it was trained, as a line.
        version: Version of glassbox that exported it.
    """

    name: str
    model_digest: str
    accuracy: str
    data: str
    recipe: str
    version: str


def build_card(
    export_format: ExportFormat,
    metadata: ModelMetadata,
    data: DataSpec,
    comparison: Comparison,
    origin: Origin,
) -> str:
    """Builds the model card, in Markdown.

    Args:
        export_format: Format of the export.
        metadata: Metadata inside the export.
        data: Size and channels of the images, and how others are made to fit.
        comparison: How its answers differ from those of the model.
        origin: Where the model comes from.
    """
    entries = tuple(comparison.differences)
    use = "\n".join(USES[export_format.name]).format(file=export_format.file, entry=entries[0])
    sections = [
        f"# {origin.name}",
        f"An image classifier as {export_format.title}: `{export_format.file}`, "
        f"exported by glassbox {origin.version}.",
        f"```python\n{use}\n```",
        "## Input",
        _list_items(_describe_inputs(entries, data)),
        "Decode the file first: " + _describe_decoding(data, metadata),
        "## Preprocessing",
        _list_items(_describe_preprocessing(entries, data)),
        "## Output",
        _list_items(_describe_outputs(metadata, export_format)),
        "## Quality",
        _list_items([origin.accuracy, _describe_comparison(comparison)]),
        "## Origin",
        _list_items(_describe_provenance(origin)),
    ]
    return "\n\n".join(sections) + "\n"


def _list_items(items: Iterable[str]) -> str:
    return "\n".join(f"- {item}" for item in items)


def _describe_inputs(entries: Sequence[str], data: DataSpec) -> list[str]:
    height, width = data.image_size
    texts = {
        ANY_SIZE: f"Entry `{ANY_SIZE}`: `images`, uint8 `[B, h, w, {data.channels}]` of any size; "
        "all images of a call have the same size.",
        FITTED: f"Entry `{FITTED}`: `images`, uint8 `[B, {height}, {width}, {data.channels}]`, "
        "prepared as described below.",
    }
    layout = f"Values 0 to 255, not scaled. Channels last: {COLOURS[data.channels]}. Rows from top to bottom."
    return [*(texts[entry] for entry in entries), layout]


def _describe_decoding(data: DataSpec, metadata: ModelMetadata) -> str:
    parts = [
        "turn it as its EXIF orientation says, blend transparent pixels with white, and reduce it to 8 bits",
    ]
    if metadata.levels != "full":
        parts.append(f"(values {metadata.levels.replace(':', ' to ')} become 0 to 255)")
    parts.append("and to grey" if data.channels == 1 else "in RGB")
    return f"{' '.join(parts)}. Pillow decodes JPEGs to the pixels that `glassbox predict` uses."


def _describe_preprocessing(entries: Sequence[str], data: DataSpec) -> list[str]:
    height, width = data.image_size
    image_fit = ImageFit(data.fit, data.resize, data.antialias)
    where = f"inside `{ANY_SIZE}`" if ANY_SIZE in entries else "by you, before the call"
    size = f"{height} x {width} (height x width)"
    antialias = "low-pass filtered (triangle filter)" if data.antialias else "not antialiased"
    return [
        f"Images of another size or shape ({where}): {image_fit}, to {size}.",
        f"Fit `{data.fit}`, resize {data.resize or 'none'}, antialias {'yes' if data.antialias else 'no'}.",
        f"Resizing is bilinear with half-pixel centers, {antialias}, and rounded to whole levels.",
        "Everything after that (scaling, normalization, probabilities) is inside the model.",
    ]


def _describe_outputs(metadata: ModelMetadata, export_format: ExportFormat) -> list[str]:
    count = len(metadata.classes)
    names = ", ".join(f"{index} {name}" for index, name in enumerate(metadata.classes[:MAX_CLASSES]))
    more = ", ..." if count > MAX_CLASSES else ""
    outputs = [f"`probabilities`, float32 `[B, {count}]`; every row sums to 1."]
    if export_format.name == "savedmodel":
        outputs.append("`class`, string `[B]`: the name of the most probable class.")
    return [*outputs, f"{count} classes, in the order of the outputs: {names}{more}."]


def _describe_comparison(comparison: Comparison) -> str:
    differences = ", ".join(f"{value:.2g} (`{entry}`)" for entry, value in comparison.differences.items())
    generated = comparison.images - comparison.stored
    text = (
        f"Compared with the model after writing: the largest difference of a probability is {differences} "
        f"on {comparison.stored} images of the data and {generated} generated ones; tolerance {TOLERANCE:g}."
    )
    if comparison.half_difference is None:
        return text
    return (
        f"{text} The model was trained in half precision and is exported in float32, which changes a "
        f"probability by at most {comparison.half_difference:.2g}; tolerance {HALF_TOLERANCE:g}."
    )


def _describe_provenance(origin: Origin) -> list[str]:
    return [origin.data, f"Training: {origin.recipe}", f"Model file: SHA-256 `{origin.model_digest}`"]


def describe_recipe(config: Mapping[str, Any]) -> str:
    """Describes how a run was trained, as a line.

    Args:
        config: Configuration of the run.
    """
    optimizer = config.get("optimizer") or {}
    named = {
        "preset": config.get("preset"),
        "model": config.get("model"),
        "weights": config.get("weights"),
        "epochs": config.get("epochs"),
        "global batch": config.get("global_batch"),
        "optimizer": optimizer.get("name"),
        "learning rate": optimizer.get("learning_rate"),
        "precision": config.get("precision"),
        "seed": config.get("seed"),
    }
    parts = [f"{name} {value}" for name, value in named.items() if value is not None]
    changes = sorted(name for name, value in (config.get("augment") or {}).items() if value)
    parts.append(f"augmentation {', '.join(changes)}" if changes else "no augmentation")
    return ", ".join(parts) + "."
