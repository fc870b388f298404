"""Exported files give the probabilities of the model, from decoded images alone, in every format.

The expected values are closed forms of the mean colour of an image, so that each mistake in the preprocessing
gives another one: swapped channels, a scale or softmax applied twice, another order of the classes, another
fit, no antialiasing.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import glassbox
import keras
import numpy as np
import pytest
import tensorflow as tf
from shard_samples import make_record, write_shards
from stores import Bucket

from pipelines.errors import ConfigError
from pipelines.remote.uri import parse_location
from service.cli import main
from service.export.formats import ANY_SIZE, FITTED, FORMATS
from service.export.graph import ExportedModel
from service.export.job import publish_directory
from service.export.verify import compare_export, draw_images
from service.export.writers import open_export, write_export
from service.inference.interpretation import RAW, UNIT, ImageFit, Interpretation
from service.models import Task, build_model
from service.models.metadata import ModelMetadata, append_metadata, read_metadata
from service.runs import Run

CLASSES = ("red", "green", "blue")  # not in alphabetical order
SIZE = (12, 9)
STEEP = 8.0  # logits for a full colour
needs_onnx = pytest.mark.skipif(
    find_spec("tf2onnx") is None or find_spec("onnxruntime") is None, reason="needs the extra onnx"
)
ONNX = pytest.param("onnx", marks=needs_onnx)
EVERY_FORMAT = pytest.mark.parametrize("name", ["savedmodel", ONNX, "tflite"])
# Converting to ONNX takes longest, so some cases do it with the slow tests only.
RARELY_ONNX = pytest.mark.parametrize(
    "name", ["savedmodel", pytest.param("onnx", marks=[needs_onnx, pytest.mark.slow]), "tflite"]
)


def build_colour_model(size: tuple[int, int] = SIZE, steep: float = STEEP) -> keras.Model:
    """Builds a model whose logits are the mean of each channel, 0 to 1, times a factor."""
    image = keras.Input((*size, 3))
    x = keras.layers.Rescaling(1 / 255, dtype="float32")(image)
    x = keras.layers.GlobalAveragePooling2D()(x)
    dense = keras.layers.Dense(3, use_bias=False, name="logits")
    model = keras.Model(image, keras.layers.Softmax(dtype="float32")(dense(x)))
    dense.set_weights([steep * np.eye(3, dtype=np.float32)])
    return model


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def expect(colour: Any, steep: float = STEEP) -> np.ndarray:
    """Returns the probabilities for a mean colour, 0 to 255."""
    return softmax(steep * np.asarray(colour, np.float64) / 255)


def save_model(path: Path, model: keras.Model, **settings: Any) -> Path:
    """Saves a model with metadata, as training does."""
    model.save(path)
    height, width, channels = model.input_shape[1:]
    append_metadata(path, ModelMetadata(CLASSES, "ab" * 32, (height, width), channels, **settings))
    return path


def export(
    model: Path | str, folder: Path, name: str, *options: str
) -> Callable[[str, np.ndarray], np.ndarray]:
    """Exports with the command, which must succeed, and opens the file with the runtime of its format."""
    assert main(["export", str(model), "--format", name, "--out", str(folder), *options]) == 0
    return open_export(FORMATS[name], folder / FORMATS[name].file)


def paint(size: tuple[int, int], colour: tuple[int, int, int], inner: tuple[int, int, int]) -> np.ndarray:
    """Paints `[1, h, w, 3]`: a central square as long as the shorter side, and the rest in another colour."""
    image = np.empty((1, *size, 3), np.uint8)
    image[:] = colour
    side = min(size)
    top = (size[0] - side) // 2
    left = (size[1] - side) // 2
    image[:, top : top + side, left : left + side] = inner
    return image


@dataclass(frozen=True)
class Exported:
    """A model exported in one format: the central 8 x 8 of 16 pixels on the shorter side, low-pass filtered.

    Attributes:
        name: Name of the format.
        predict: Function that runs an entry of the file on images.
    """

    name: str
    predict: Callable[[str, np.ndarray], np.ndarray]


@pytest.fixture(scope="module", params=["savedmodel", ONNX, "tflite"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp(request.param)
    model = build_colour_model((8, 8))
    path = save_model(folder / "m.keras", model, fit="crop", resize=16, antialias=True)
    return Exported(request.param, export(path, folder / "out", request.param))


def test_colours_are_classified_by_their_names_whatever_the_size(exported: Exported) -> None:
    for colour in ((255, 0, 0), (0, 128, 30), (10, 20, 200)):
        for size in ((8, 8), (31, 40), (5, 4)):
            answers = exported.predict(ANY_SIZE, paint(size, colour, colour))
            np.testing.assert_allclose(answers, [expect(colour)], atol=1e-5)
    batch = np.concatenate([paint(SIZE, (9, 9, 200), (9, 9, 200)), paint(SIZE, (255, 0, 0), (255, 0, 0))])
    np.testing.assert_allclose(
        exported.predict(ANY_SIZE, batch), [expect((9, 9, 200)), expect((255, 0, 0))], atol=1e-5
    )


def test_a_crop_is_inside_and_fitted_images_stay_as_they_are(exported: Exported) -> None:
    """With a shorter side of 16, the central 8 x 8 pixels are half as long as the shorter side."""
    tall = paint((36, 24), (255, 0, 0), (255, 0, 0))
    tall[:, 12:24, 6:18] = (0, 0, 255)
    np.testing.assert_allclose(exported.predict(ANY_SIZE, tall), [expect((0, 0, 255))], atol=1e-5)
    if FORMATS[exported.name].has_several_entries:
        framed = paint((8, 8), (0, 255, 0), (0, 255, 0))
        framed[:, 2:6, 2:6] = (0, 0, 255)  # a second crop would show this quarter alone
        answers = exported.predict(FITTED, framed)
        np.testing.assert_allclose(answers, [expect((0, 255 * 0.75, 255 / 4))], atol=1e-5)


def test_antialiasing_is_inside(exported: Exported) -> None:
    """Of three columns one is red. Without antialiasing, a third of the size keeps the red ones alone."""
    stripes = np.zeros((1, 48, 48, 3), np.uint8)  # of which the central 24 x 24 are used
    stripes[:, :, 1::3, 0] = 255
    # Each pixel of the result is centred on a red one, whose weight is 3/9 next to those of the black ones
    # (2/9 and 1/9 on both sides): 85. At the two borders, 1/9 is missing and the rest is divided by 8/9: 96.
    red = (6 * 85 + 2 * 96) / 8
    answers = exported.predict(ANY_SIZE, stripes)
    np.testing.assert_allclose(answers, [expect((red, 0, 0))], atol=1e-5)


@RARELY_ONNX
def test_a_padded_model_of_one_logit_gives_two_probabilities(name: str, tmp_path: Path) -> None:
    image = keras.Input((*SIZE, 3))
    brightness = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(image))
    dense = keras.layers.Dense(1)
    model = keras.Model(image, dense(brightness))
    dense.set_weights([np.array([[4.0], [0.0], [0.0]], np.float32), np.array([-1.0], np.float32)])
    model.save(tmp_path / "m.keras")
    options = ("--classes", "other", "is red", "--head", "logits", "--scale", "1", "--fit", "pad")
    predict = export(tmp_path / "m.keras", tmp_path / "out", name, *options)
    red = 1 / (1 + np.exp(1 - 4 * 100 / 255))  # half of the result is black
    answers = predict(ANY_SIZE, paint((24, 36), (200, 0, 0), (200, 0, 0)))
    np.testing.assert_allclose(answers, [[1 - red, red]], atol=1e-5)


@RARELY_ONNX
def test_a_model_of_mixed_precision_is_exported(name: str, tmp_path: Path) -> None:
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = build_colour_model()
    finally:
        keras.config.set_dtype_policy("float32")
    assert model.get_layer("logits").compute_dtype == "bfloat16"
    predict = export(save_model(tmp_path / "m.keras", model), tmp_path / "out", name)
    colour = (83, 117, 201)
    answers = predict(ANY_SIZE, paint((20, 30), colour, colour))
    is_half = name == "savedmodel"
    np.testing.assert_allclose(answers, [expect(colour)], atol=2e-2 if is_half else 1e-5)
    assert ("in half precision" in (tmp_path / "out/model-card.md").read_text()) != is_half


CUSTOM_LAYER = """
import keras

@keras.saving.register_keras_serializable("exported")
class Halve(keras.layers.Layer):
    def call(self, x):
        return x / 2

def build(task):
    image = keras.Input(task.shape)
    x = keras.layers.GlobalAveragePooling2D()(Halve()(keras.layers.Rescaling(1 / 255)(image)))
    return keras.Model(image, keras.layers.Dense(3, activation="softmax", use_bias=False)(x))
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of user code with a custom layer, on six photos of another size than the model takes."""
    folder = tmp_path_factory.mktemp("runs")
    code = folder / "halving.py"
    code.write_text(CUSTOM_LAYER)
    generator = np.random.default_rng(0)
    records = [
        make_record(generator.integers(0, 256, (40, 30, 3)).astype(np.uint8), row % 3, f"{row}.png")
        for row in range(6)
    ]
    shards = write_shards(folder / "shards", CLASSES, {"train": records, "validation": records[:5]})
    run = Run(folder / "mine")
    data = {"image_size": list(SIZE), "channels": 3, "fit": "crop"}
    run.create(
        {
            "preset": "demo",
            "model": f"{code}:build",
            "shards": str(shards),
            "data": data,
            "epochs": 2,
            "optimizer": {"name": "adam", "learning_rate": 0.01},
            "augment": {"flip": True},
        }
    )
    digest = glassbox.open_shards(shards).manifest.digest()
    run.write_metadata(ModelMetadata(CLASSES, digest, SIZE, 3, fit="crop"))
    run.write_metrics(
        [
            {"epoch": 1, "loss": 1.0, "accuracy": 0.5, "val_loss": 1.0, "val_accuracy": 0.8},
            {"epoch": 2, "loss": 1.0, "accuracy": 0.9, "val_loss": 1.0, "val_accuracy": 0.6},
        ]
    )
    model = build_model(run.config()["model"], Task((*SIZE, 3), 3, (128.0,) * 3, (64.0,) * 3))
    kernel = 2 * STEEP * np.eye(3, dtype=np.float32)  # twice, because a layer halves what it gets
    (dense,) = (layer for layer in model.layers if isinstance(layer, keras.layers.Dense))
    dense.set_weights([kernel])
    run.write_model(model.save)
    return run


@EVERY_FORMAT
def test_a_run_of_user_code_answers_as_predict(
    name: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(run.path), "--format", name]) == 0
    folder = tmp_path / "exports" / f"mine-{name}"
    predict = open_export(FORMATS[name], folder / FORMATS[name].file)
    shards = glassbox.open_shards(run.config()["shards"])
    table = glassbox.predict(run.path, shards, split="validation")
    expected = np.stack([table[label].to_numpy() for label in CLASSES], axis=1)
    photos = shards.images(range(5), size=(40, 30))
    np.testing.assert_allclose(predict(ANY_SIZE, photos), expected, atol=1e-3)
    card = (folder / "model-card.md").read_text()
    for text in (
        "uint8 `[B, h, w, 3]` of any size",
        "Values 0 to 255, not scaled. Channels last: red, green, blue.",
        "Fit `crop`, resize none, antialias no.",
        "3 classes, in the order of the outputs: 0 red, 1 green, 2 blue.",
        "Accuracy: 0.8000 on 5 images of the validation split (epoch 1).",  # that of the best epoch
        f"digest `{shards.manifest.digest()}`, from the source `folder:tiny` with fingerprint `0`",
        "epochs 2, optimizer adam, learning rate 0.01, augmentation flip.",
        "on 5 images of the data and 16 generated ones; tolerance 0.001",
    ):
        assert text in card
    assert ("uint8 `[B, 12, 9, 3]`" in card) == FORMATS[name].has_several_entries


def test_a_saved_model_names_the_classes(run: Run, tmp_path: Path) -> None:
    out = glassbox.export(glassbox.load_run(run.path), out=tmp_path / "out")
    assert out == tmp_path / "out" / "model"
    signatures = tf.saved_model.load(str(out)).signatures
    blue = signatures[ANY_SIZE](images=tf.constant(paint((20, 20), (0, 0, 250), (0, 0, 250))))
    assert blue["class"].numpy().tolist() == [b"blue"]
    names = signatures["class_names"]()["class_names"].numpy()
    assert [name.decode() for name in names] == list(CLASSES)
    assert (out / "assets.extra/classes.txt").read_text().splitlines() == list(CLASSES)


@needs_onnx
def test_an_onnx_file_holds_classes_and_names_its_dimensions(tmp_path: Path) -> None:
    import onnxruntime

    export(save_model(tmp_path / "m.keras", build_colour_model(), fit="pad"), tmp_path / "any", "onnx")
    export(tmp_path / "m.keras", tmp_path / "fixed", "onnx", "--fitted")
    session = onnxruntime.InferenceSession(tmp_path / "any/model.onnx")
    (images,) = session.get_inputs()
    assert (images.name, images.type, images.shape) == (
        "images",
        "tensor(uint8)",
        ["batch", "height", "width", 3],
    )
    assert [output.name for output in session.get_outputs()] == ["probabilities"]
    properties = session.get_modelmeta().custom_metadata_map
    assert json.loads(properties["classes"]) == list(CLASSES)
    metadata = ModelMetadata.from_json(properties["glassbox"], "model.onnx")
    assert (metadata.classes, metadata.fit, metadata.data) == (CLASSES, "pad", "ab" * 32)
    (fitted,) = onnxruntime.InferenceSession(tmp_path / "fixed/model.onnx").get_inputs()
    assert fitted.shape == ["batch", *SIZE, 3]


def test_a_tflite_file_holds_classes_and_preprocessing(tmp_path: Path) -> None:
    path = save_model(tmp_path / "m.keras", build_colour_model(), fit="crop", resize=20, antialias=True)
    export(path, tmp_path / "out", "tflite", "--fitted")
    file = tmp_path / "out/model.tflite"
    assert zipfile.ZipFile(file).read("classes.txt").decode().splitlines() == list(CLASSES)
    metadata = read_metadata(file)
    assert metadata is not None
    assert (metadata.fit, metadata.resize, metadata.antialias) == ("crop", 20, True)
    assert list(tf.lite.Interpreter(str(file)).get_signature_list()) == [FITTED]


def swap_channels(entry: str, images: np.ndarray) -> np.ndarray:
    return images[..., ::-1]


def stretch(entry: str, images: np.ndarray) -> np.ndarray:
    if entry == FITTED:
        return images
    resized = tf.image.resize(images, SIZE).numpy()
    return (resized + 0.5).astype(np.uint8)


@pytest.mark.parametrize("change", [swap_channels, stretch])
def test_a_file_that_answers_otherwise_is_refused_and_nothing_is_left(
    change: Callable[[str, np.ndarray], np.ndarray], tmp_path: Path
) -> None:
    interpretation = Interpretation(RAW, "probabilities", "", "", image_fit=ImageFit("crop", None, True))
    exported = ExportedModel(build_colour_model(), interpretation, CLASSES)
    metadata = ModelMetadata(CLASSES, "", SIZE, 3)
    entries = (ANY_SIZE, FITTED)

    def write_and_compare(change: Callable[[str, np.ndarray], np.ndarray]) -> None:
        with publish_directory(tmp_path / "out") as folder:
            file = write_export(FORMATS["savedmodel"], exported, metadata, entries, folder)
            predict = open_export(FORMATS["savedmodel"], file)
            compare_export(
                lambda entry, images: predict(entry, change(entry, images)), exported, exported, entries, []
            )

    with pytest.raises(ConfigError, match="difference="):
        write_and_compare(change)
    assert list(tmp_path.iterdir()) == []
    write_and_compare(lambda entry, images: images)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_images_of_the_comparison_tell_the_usual_mistakes_apart() -> None:
    """Each mistake changes a probability by far more than the tolerance, for a model of mean colours."""
    model = build_colour_model()
    right = ExportedModel(model, Interpretation(RAW, "probabilities", "", ""), CLASSES)
    images = np.stack([image for image in draw_images(right.data) if image.shape[:2] == SIZE])
    expected = right.predict_fitted(tf.constant(images)).numpy()
    mistakes = {
        "scale applied twice": ExportedModel(model, Interpretation(UNIT, "probabilities", "", ""), CLASSES),
        "softmax applied twice": ExportedModel(model, Interpretation(RAW, "logits", "", ""), CLASSES),
    }
    for name, wrong in mistakes.items():
        assert np.abs(wrong.predict_fitted(tf.constant(images)).numpy() - expected).max() > 0.05, name


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--format", "onx"], 2, "Received: format=onx. Fix: use onnx"),
        (["--out", "taken"], 2, "Received: out="),
        (["--classes", "one", "two"], 2, "Expected 3 class names"),
    ],
)
def test_mistakes_are_one_sentence(
    arguments: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "m.keras", build_colour_model())
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/file").write_text("kept")
    assert main(["export", "m.keras", *arguments]) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.keras", "taken"]


@pytest.mark.parametrize("name", ["_hidden", "-hidden"])
def test_a_layer_that_no_saved_model_can_name_is_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = keras.Input((8, 8, 3))
    x = keras.layers.GlobalAveragePooling2D()(image)
    keras.Model(image, keras.layers.Dense(3, activation="softmax", name=name)(x)).save(tmp_path / "m.keras")
    command = ["export", str(tmp_path / "m.keras"), "--format", "savedmodel", "--out", str(tmp_path / "out")]
    assert main([*command, "--scale", "1"]) == 2
    assert f"(layer {name!r}). Fix: rename the layer" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_operation_that_tflite_lacks_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = keras.Input((8, 8, 3))
    x = keras.layers.GlobalAveragePooling2D()(keras.ops.erfinv(image / 512))
    keras.Model(image, keras.layers.Dense(3, activation="softmax")(x)).save(tmp_path / "m.keras")
    command = ["export", str(tmp_path / "m.keras"), "--format", "tflite", "--out", str(tmp_path / "out")]
    assert main([*command, "--scale", "1"]) == 2
    assert "format=tflite (tf.Erfinv). Fix: use --format savedmodel." in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.e2e
def test_a_run_on_a_store_is_exported_to_a_store(
    run: Run, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLASSBOX_CACHE", str(tmp_path / "cache"))
    bucket.upload_folder(run.path, "runs/mine")
    out = glassbox.load_run(f"{bucket.url}/runs/mine").export("tflite", out=f"{bucket.url}/exports/mine")
    assert out == parse_location(f"{bucket.url}/exports/mine/model.tflite")
    assert bucket.list_keys("exports/") == ["exports/mine/model-card.md", "exports/mine/model.tflite"]
    assert b"Accuracy: 0.8000 on 5 images" in bucket.get("exports/mine/model-card.md")
    with pytest.raises(glassbox.ConfigError, match="does not exist yet"):
        glassbox.export(run.path, "tflite", f"{bucket.url}/exports/mine")
