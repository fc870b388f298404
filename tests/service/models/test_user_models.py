"""Models of users: what is inferred about them, what is refused, and runs that need only their own copy."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers
from training_samples import fit_run, noise_shards, read_checkpoint

from pipelines.errors import ConfigError
from service.config import load_config, load_run_config
from service.inference.classifier import load_model
from service.inference.custom_objects import collect_custom_objects
from service.models import Task, build_model
from service.models.adapt import adapt_model
from service.models.check import check_model
from service.models.weights import load_weights
from service.report.job import render_report
from service.runs import Run
from service.training.launch import resume, train

ROOT = Path(__file__).resolve().parents[3]
SHAPE = (12, 12, 3)

CUSTOM_LAYER = """
import keras

class Shift(keras.layers.Layer):
    def __init__(self, amount, **options):
        super().__init__(**options)
        self.amount = amount

    def call(self, x):
        return x + self.amount

    def get_config(self):
        return super().get_config() | {"amount": self.amount}
"""
FUNCTION = """
def build(task):
    image = keras.Input(task.shape)
    x = keras.layers.Rescaling(1 / 255)(image)
    x = keras.layers.Conv2D(4, 3, activation="relu")(Shift(0.5)(x))
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, keras.layers.Dense(task.classes, activation="softmax")(x))
"""


def task(classes: int = 3) -> Task:
    return Task(SHAPE, classes, (120.0,) * 3, (60.0,) * 3)


def network(*ends: Any, scaled: bool = True) -> keras.Model:
    """Pixels to features, and some last layers."""
    first = [layers.Rescaling(1 / 255)] if scaled else []
    return keras.Sequential([keras.Input(SHAPE), *first, layers.Flatten(), *ends])


def pixels(count: int = 4) -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 255, (count, *SHAPE)).astype(np.float32)


@pytest.mark.parametrize(
    ("ends", "classes", "note"),
    [
        ([layers.Dense(3, activation="softmax")], 3, "ends in softmax"),
        ([layers.Dense(3), layers.Activation("softmax")], 3, "ends in softmax"),
        ([layers.Dense(3), layers.Softmax()], 3, "ends in softmax"),
        ([layers.Dense(2, activation="softmax")], 2, "ends in softmax"),
        ([layers.Dense(1, activation="sigmoid")], 2, "ends in sigmoid"),
        (
            [keras.Sequential([layers.Dense(3, activation="softmax")]), layers.Dropout(0.5)],
            3,
            "ends in softmax",
        ),
    ],
)
def test_the_activation_of_the_head_moves_behind_the_logits(
    ends: list[layers.Layer], classes: int, note: str
) -> None:
    model = network(*[layer.__class__.from_config(layer.get_config()) for layer in ends])
    expected = np.asarray(model(pixels()))
    adapted, notes = adapt_model(model, "mine", task(classes))
    assert note in notes[0]
    np.testing.assert_allclose(adapted(pixels()), expected, atol=1e-6)
    logits = np.asarray(keras.Model(adapted.input, adapted.get_layer("logits").output)(pixels()))
    squash = keras.ops.softmax if classes > 2 or expected.shape[1] > 1 else keras.ops.sigmoid
    np.testing.assert_allclose(squash(logits), expected, atol=1e-6)


@pytest.mark.parametrize(("units", "classes"), [(3, 3), (1, 2), (2, 2)])
def test_a_head_without_activation_gives_logits(units: int, classes: int) -> None:
    model = network(layers.Dense(units))
    expected = np.asarray(model(pixels()))
    adapted, notes = adapt_model(model, "mine", task(classes))
    assert "has no activation, so its outputs are taken for logits" in notes[0]
    logits = keras.Model(adapted.input, adapted.get_layer("logits").output)
    np.testing.assert_allclose(logits(pixels()), expected, atol=1e-6)
    squash = keras.ops.sigmoid if units == 1 else keras.ops.softmax
    np.testing.assert_allclose(adapted(pixels()), squash(expected), atol=1e-6)


def test_a_last_layer_named_logits_is_taken_as_the_logits() -> None:
    adapted, notes = adapt_model(network(layers.Dense(3, activation="tanh", name="logits")), "mine", task())
    assert "named logits" in notes[0]
    assert adapted.layers[-1].name == "probabilities"
    again, notes = adapt_model(adapted, "mine", task())
    assert [layer.name for layer in again.layers] == [layer.name for layer in adapted.layers]
    assert "ends in the layers logits and probabilities" in notes[0]


def test_pixels_are_scaled_where_the_model_does_not_scale_them_itself() -> None:
    model = network(layers.Dense(3), scaled=False)
    expected = np.asarray(model(pixels() / 255))
    adapted, notes = adapt_model(model, "mine", task())
    assert "pixels are rescaled to 0 to 1" in notes[1]
    logits = keras.Model(adapted.input, adapted.get_layer("logits").output)
    np.testing.assert_allclose(logits(pixels()), expected, rtol=1e-4, atol=1e-5)
    _, notes = adapt_model(network(layers.Dense(3)), "mine", task())
    assert notes[1].startswith("model=mine: it takes pixels of 0 to 255: its graph turns this range into ")


def two_inputs() -> keras.Model:
    images = [keras.Input(SHAPE), keras.Input(SHAPE)]
    return keras.Model(images, layers.Dense(3)(layers.Flatten()(layers.Add()(images))))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: "model", r"that returns a Keras model. Received: model=mine \(returned str\)"),
        (lambda: keras.Sequential([layers.Dense(3)]), r"fixed input size.*Sequential without an input"),
        (lambda: type("Net", (keras.Model,), {})(), "functional or Sequential model.*subclassed Net"),
        (
            lambda: keras.Sequential(
                [keras.Input((None, None, 3)), layers.Conv2D(3, 3), layers.GlobalMaxPooling2D()]
            ),
            r"fixed input size.*input \?x\?x3.*for images of 12x12x3",
        ),
        (
            lambda: keras.Sequential([keras.Input((8, 8, 3)), layers.Flatten(), layers.Dense(3)]),
            "input 8x8x3",
        ),
        (two_inputs, "2 inputs, 1 outputs"),
        (lambda: network(layers.Dense(10, activation="softmax")), r"the 3 classes.*10 output units"),
        (lambda: network(layers.Dense(1, activation="sigmoid")), r"the 3 classes.*1 output units"),
        (lambda: keras.Sequential([keras.Input(SHAPE), layers.Conv2D(3, 3)]), r"output \(None, 10, 10, 3\)"),
        (
            lambda: network(layers.Dense(3, activation="sigmoid")),
            "head that is recognized.*activation sigmoid, 3",
        ),
        (lambda: network(layers.Dense(3, activation="tanh")), "head that is recognized.*tanh"),
        (lambda: network(layers.Dense(3), layers.ReLU()), "head that is recognized.*ReLU"),
        (lambda: network(layers.Dense(3, name="logits"), layers.ReLU()), "layer logits is not the last"),
    ],
)
def test_a_model_that_is_no_classifier_for_the_data_is_refused(model: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        adapt_model(model(), "mine", task())


def test_one_softmax_unit_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"head that is recognized.*activation softmax, 1 units"):
        adapt_model(network(layers.Dense(1, activation="softmax")), "mine", task(2))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return noise_shards(tmp_path_factory.mktemp("shards") / "set", classes=3)


def settings(model: str, *more: str) -> list[str]:
    small = ["data.image_size=[12,12]", "global_batch=8", "epochs=3", "data.cache=none"]
    return [f"model={model}", *small, *more]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def build(task): return 1", "that returns a Keras model"),
        ("def build(): pass", r"a function that builds a model. Received: .*TypeError: build\(\) takes 0"),
        ("def build(task):\n    return task.size", r"AttributeError: .* \(line 2\)"),
        ("build = 3", r"a function that builds a model. Received: .*\(a int\)"),
        ("import keras\n\ndef other(task): pass", "use other"),
        ("import nonsense", "nonsense"),
        (
            "import keras\ndef build(task):\n return keras.Sequential([keras.Input(task.shape), "
            "keras.layers.Flatten(), keras.layers.Lambda(lambda x: x), keras.layers.Dense(task.classes)])",
            "a model that can be saved and loaded",
        ),
        ("import beside\ndef build(task): return beside.build(task)", r"imports beside from .*beside\.py"),
    ],
)
def test_a_function_that_cannot_be_trained_is_refused(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, message: str
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(code)
    (tmp_path / "beside.py").write_text(CUSTOM_LAYER + FUNCTION)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=message):
        check_model(load_config("demo", shards, settings(f"{file}:build")), in_process=True)
    sys.modules.pop("beside", None)


def test_nothing_is_written_for_a_model_that_is_refused(shards: Path, tmp_path: Path) -> None:
    """The model is checked in a separate process, which returns the error."""
    file = tmp_path / "mine.py"
    file.write_text("def build(task): return 1")
    with pytest.raises(ConfigError, match=r"that returns a Keras model\. Received: model=.*mine\.py:build"):
        train(load_config("demo", shards, settings(f"{file}:build")), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("smal_cnn", "use small_cnn"),
        ("missing.py:build", r"a model in a file.*missing\.py:build"),
        ("missing.keras", "no such file"),
        ("no_such_package.models:build", "no_such_package"),
    ],
)
def test_unknown_models_are_refused(shards: Path, model: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_model(load_config("demo", shards, settings(model)), in_process=True)


def write_package(folder: Path) -> None:
    package = folder / "flowernets" / "nets"
    package.mkdir(parents=True)
    (folder / "flowernets" / "__init__.py").write_text("")
    (folder / "flowernets" / "layers.py").write_text(CUSTOM_LAYER)
    (package / "__init__.py").write_text("import keras\nfrom ..layers import Shift\n" + FUNCTION)


def write_file(folder: Path) -> None:
    (folder / "nets.py").write_text(CUSTOM_LAYER + FUNCTION)


AFTERWARDS = """
import sys
from service.cli import main
run, shards = sys.argv[1:]
for words in (
    ["train", "--local", "--resume", "--out", run],
    ["evaluate", "--model", run, "--data", shards],
    ["report", run],
):
    code = main(words)
    if code:
        sys.exit(f"{words[0]}: exit {code}")
"""


@pytest.mark.parametrize(
    ("write", "reference", "stored"),
    [
        (write_file, "nets.py:build", "code/nets.py:build"),
        pytest.param(
            write_package, "flowernets.nets:build", "code/flowernets.nets:build", marks=pytest.mark.slow
        ),
    ],
)
def test_a_run_needs_nothing_but_its_copy_of_the_code(
    shards: Path, tmp_path: Path, write: Any, reference: str, stored: str
) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    write(mine)
    config = load_config("demo", shards, settings(f"{mine}/{reference}"))
    run = Run(tmp_path / "run")
    run.create(config.model_dump(mode="json"))
    assert f"model: {stored}\n" in run.config_path.read_text()
    fit_run(run.path, load_run_config(run), checks=3)
    epochs_before = len(run.metrics())
    assert epochs_before < 3

    shutil.rmtree(mine)
    moved = Run(run.path.rename(tmp_path / "moved"))
    command = [sys.executable, "-c", AFTERWARDS, str(moved.path), str(shards)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(moved.metrics()) == 3
    assert "accuracy" in done.stdout
    assert (moved.report / "index.html").is_file()


AUGMENTATION = """
import numpy as np
from pipelines.augment.base import PixelAugmentation
from pipelines.settings import Spec

class Invert(PixelAugmentation):
    class Settings(Spec):
        probability: float = 0.5

    streams = {"chance": 0}

    def draw(self, numbers, image):
        is_inverted = numbers.is_active & (numbers.uniform("chance") < self.settings.probability)
        return is_inverted.astype(np.float32)

    def apply(self, images, parameters):
        share = parameters[:, None, None, None]
        return (1 - share) * images + share * (255 - images)
"""


def test_an_augmentation_from_a_file_draws_the_same_after_the_file_is_gone(
    shards: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "my files"
    mine.mkdir()
    (mine / "invert.py").write_text(AUGMENTATION)
    augmented = settings("linear", f"augment.{mine}/invert.py:Invert.probability=0.25")
    config = load_config("demo", shards, augmented)
    whole = train(config, tmp_path / "whole", local=True)
    plain = train(load_config("demo", shards, settings("linear")), tmp_path / "plain", local=True)
    assert whole.metrics()[-1]["loss"] != plain.metrics()[-1]["loss"]

    run = Run(tmp_path / "run")
    run.create(config.model_dump(mode="json"))
    assert "  code/invert.py:Invert:\n    probability: 0.25\n" in run.config_path.read_text()
    fit_run(run.path, load_run_config(run), checks=3)
    shutil.rmtree(mine)
    moved = Run(run.path.rename(tmp_path / "moved"))
    resume(moved.path, local=True)
    for expected, array in zip(
        read_checkpoint(whole, "epoch-0003"), read_checkpoint(moved, "epoch-0003"), strict=True
    ):
        np.testing.assert_array_equal(array, expected)
    assert render_report(moved).is_file()


def save_custom_model(folder: Path) -> Path:
    """A saved model with a custom layer, fixed statistics and weights that training does not begin with."""
    (folder / "layers.py").write_text(CUSTOM_LAYER)
    shift = collect_custom_objects([f"{folder}/layers.py"])["Shift"]
    image = keras.Input(SHAPE)
    x = layers.Normalization(mean=100.0, variance=400.0)(image)
    x = layers.Dense(3, activation="softmax", kernel_initializer="ones")(layers.Flatten()(shift(0.5)(x)))
    model = keras.Model(image, x)
    model.layers[-1].set_weights([np.full((432, 3), 0.25, np.float32), np.ones(3, np.float32)])
    model.save(folder / "net.keras")
    return folder / "net.keras"


def test_a_saved_model_needs_its_custom_layers_declared(shards: Path, tmp_path: Path) -> None:
    path = save_custom_model(tmp_path)
    with pytest.raises(ConfigError, match=r"code of the custom layer Shift.*--custom-objects"):
        check_model(load_config("demo", shards, settings(str(path))), in_process=True)
    declared = settings(str(path), f"custom_objects={tmp_path}/layers.py")
    assert "ends in softmax" in check_model(load_config("demo", shards, declared), in_process=True)[0]


def test_of_a_saved_model_only_the_architecture_is_taken_unless_its_weights_are_requested(
    shards: Path, tmp_path: Path
) -> None:
    path = save_custom_model(tmp_path)
    kernels = {}
    for weights in ("none", "saved"):
        words = settings(str(path), f"custom_objects={tmp_path}/layers.py", f"weights={weights}")
        config = load_config("demo", shards, words)
        model = build_model(config.model, task(), config.custom_objects)
        if weights == "saved":
            load_weights(model, config.model, "saved", config.custom_objects)
        normalized = keras.Model(model.input, model.layers[1].output)(np.full((1, *SHAPE), 140.0, np.float32))
        np.testing.assert_allclose(normalized, 2.0, atol=1e-5)
        kernels[weights] = model.layers[-3].get_weights()[0]
    np.testing.assert_array_equal(kernels["none"], np.ones((432, 3)))
    np.testing.assert_array_equal(kernels["saved"], np.full((432, 3), 0.25))


def test_saved_weights_need_a_saved_model(shards: Path) -> None:
    with pytest.raises(ConfigError, match=r"saved goes with model=file\.keras alone, not with small_cnn"):
        load_config("demo", shards, settings("small_cnn", "weights=saved"))


def test_a_run_keeps_a_saved_model_and_the_code_of_its_layers(shards: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    path = save_custom_model(mine)
    words = settings(str(path), f"custom_objects={mine}/layers.py", "weights=saved", "epochs=1")
    run = Run(tmp_path / "run")
    run.create(load_config("demo", shards, words).model_dump(mode="json"))
    shutil.rmtree(mine)
    config = load_run_config(run)
    assert (config.model, config.custom_objects) == (
        f"{run.path}/code/net.keras",
        (f"{run.path}/code/layers.py",),
    )
    fit_run(run.path, config)
    load_model(run.model_path, run.custom_objects())
    with pytest.raises(ConfigError, match="custom layer Shift"):
        load_model(run.model_path)


def test_changed_code_of_a_run_is_not_used(shards: Path, tmp_path: Path) -> None:
    write_file(tmp_path)
    run = Run(tmp_path / "run")
    config = load_config("demo", shards, settings(f"{tmp_path}/nets.py:build"))
    run.create(config.model_dump(mode="json"))
    copy = run.path / "code" / "nets.py"
    copy.write_text(copy.read_text() + "\n")
    message = r"that the run was created with\. Received: file=.*nets\.py \(changed\)"
    for use in (load_run_config, Run.custom_objects):
        with pytest.raises(ConfigError, match=message):
            use(run)
    copy.unlink()
    with pytest.raises(ConfigError, match=r"nets\.py \(missing\)"):
        load_run_config(run)


def test_installed_packages_provide_models_by_name(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In site-packages with an entry point, as pip installs them: the version is recorded, no code copied."""
    site = tmp_path / "site-packages"
    write_package(site)
    metadata = site / "flowernets-2.5.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: flowernets\nVersion: 2.5\n")
    (metadata / "entry_points.txt").write_text("[glassbox.models]\nflower_net = flowernets.nets:build\n")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))

    config = load_config("demo", shards, settings("flower_net"))
    assert "ends in softmax" in check_model(config, in_process=True)[0]
    run = Run(tmp_path / "run")
    run.create(config.model_dump(mode="json"))
    assert run.config()["model"] == "flower_net"
    assert run.custom_objects() == ("flowernets.nets",)
    manifest = json.loads((run.path / "code" / "manifest.json").read_text())
    assert (manifest["files"], manifest["installed"]) == ({}, {"flower_net": "flowernets 2.5"})
    with pytest.raises(ConfigError, match="use flower_net"):
        check_model(load_config("demo", shards, settings("flour_net")))
