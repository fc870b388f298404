"""`import glassbox`: the public interface, used as in a notebook."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import glassbox
import keras
import numpy as np
import pytest
from report_samples import brightness_model, dim_and_bright, make_run, metrics
from shard_samples import encode_png

L = keras.layers


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> glassbox.ShardSet:
    """Six grey images per split, of brightness 60, 80, ..., 160; the darker half is `dim`."""
    return glassbox.open_shards(dim_and_bright(tmp_path_factory.mktemp("api") / "data"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, shards: glassbox.ShardSet) -> glassbox.TrainedRun:
    """A run whose model compares the brightness with 112."""
    path = tmp_path_factory.mktemp("api") / "run"
    make_run(path, shards.path, brightness_model(), metrics(3))
    return glassbox.load_run(path)


def test_the_import_is_light(tmp_path: Path) -> None:
    heavy = "{'tensorflow', 'keras', 'ray', 'nvidia', 'IPython'}"
    code = f"import sys, glassbox; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_every_public_name_is_documented() -> None:
    for name in glassbox.__all__:
        assert getattr(glassbox, name).__doc__, name


def test_shards_are_built_opened_and_shown(tmp_path: Path) -> None:
    for label, value in (("dark", 20), ("bright", 220)):
        folder = tmp_path / "photos" / label
        folder.mkdir(parents=True)
        for number in range(5):
            (folder / f"{number}.png").write_bytes(encode_png(np.full((8, 8), value, np.uint8)))
    built = glassbox.build_shards(f"folder:{tmp_path / 'photos'}", tmp_path / "set", validation=0.4)
    opened = glassbox.open_shards(tmp_path / "set")
    assert built == opened
    assert sorted(opened.classes) == ["bright", "dark"]
    assert sum(opened.splits.values()) == 10
    assert "<td>train</td>" in opened._repr_html_()
    with pytest.raises(glassbox.ConfigError, match="encoding"):
        glassbox.build_shards(f"folder:{tmp_path / 'photos'}", tmp_path / "other", encoding="bmp")


def test_batches_as_numpy_and_as_tf_data_are_the_same(shards: glassbox.ShardSet) -> None:
    dataset = shards.dataset("train", batch_size=4, image_size=[8, 8], seed=3)
    assert len(dataset) == 2
    for array, tensor in zip(dataset.numpy(epoch=1), dataset.tf_data(epoch=1), strict=True):
        assert set(array) == {"image", "label", "weight", "row"}
        for name, values in array.items():
            np.testing.assert_array_equal(values, tensor[name].numpy())
    rows = np.concatenate([batch["row"] for batch in dataset.numpy(epoch=1)])
    assert sorted(rows.tolist()) == [-1, -1, 0, 1, 2, 3, 4, 5]  # two rows of padding
    first = next(iter(dataset))
    assert (first["image"].dtype, first["image"].shape) == (np.uint8, (4, 8, 8, 3))


def test_augmented_batches_are_those_of_training(shards: glassbox.ShardSet) -> None:
    """A flip of grey images changes nothing; a brightness of up to 50 % changes each by one factor."""
    plain = next(iter(shards.dataset("train", batch_size=6, seed=0, image_size=8)))["image"]
    settings = {"brightness": 0.5}
    dataset = shards.dataset("train", batch_size=6, seed=0, image_size=8, augment=settings)
    augmented = next(dataset.numpy())["image"]
    assert augmented.dtype == np.float32
    factors = augmented[:, 0, 0, 0] / plain[:, 0, 0, 0]
    assert factors.min() >= 0.5 - 1e-6
    assert factors.max() <= 1.5 + 1e-6
    assert len(set(factors.round(4).tolist())) > 1
    with pytest.raises(glassbox.ConfigError, match="seed"):
        shards.dataset("train", augment=settings)


def test_a_run_exposes_metrics_model_and_html(run: glassbox.TrainedRun) -> None:
    table = run.metrics()
    assert table.num_rows == 3
    assert table["epoch"].to_pylist() == [1, 2, 3]
    assert {"loss", "accuracy", "val_loss", "val_accuracy"} <= set(table.column_names)
    assert isinstance(run.model(), keras.Model)
    assert "<table>" in run._repr_html_()
    assert "epochs=3" in repr(run)
    with pytest.raises(glassbox.ConfigError, match="a run directory"):
        glassbox.load_run(run.path.parent)


def test_evaluate_and_predict(run: glassbox.TrainedRun, shards: glassbox.ShardSet) -> None:
    assert glassbox.evaluate(run, shards).accuracy == 5 / 6
    table = glassbox.predict(run, shards, split="validation")
    assert table.column_names == ["id", "class", "dim", "bright"]
    assert table["class"].to_pylist() == ["dim"] * 3 + ["bright"] * 3


def test_load_config_takes_dotted_keys_and_keywords(shards: glassbox.ShardSet) -> None:
    changes = {"optimizer.learning_rate": 0.5, "data.image_size": 96, "freeze": ["*"]}
    config = glassbox.load_config("demo", shards, changes, epochs=2)
    assert config.optimizer.learning_rate == 0.5
    assert config.data.image_size == (96, 96)
    assert config.freeze == ("*",)
    assert config.epochs == 2
    with pytest.raises(glassbox.ConfigError, match="epoch=2"):
        glassbox.load_config("demo", shards, epoch=2)


def test_train_and_resume_in_this_process(tmp_path: Path, shards: glassbox.ShardSet) -> None:
    changes = {"data.image_size": 8, "global_batch": 6}
    config = glassbox.load_config("demo", shards, changes, model="linear", epochs=2)
    run = glassbox.train(config, out=tmp_path / "run", local=True)
    assert run.state == "finished"
    assert run.metrics().num_rows == 2
    assert glassbox.resume(run, local=True).metrics().num_rows == 2
    with pytest.raises(glassbox.ConfigError, match="does not exist yet"):
        glassbox.train(config, out=tmp_path / "run", local=True)
    with pytest.raises(glassbox.ConfigError, match="load_config"):
        glassbox.train(config, out=tmp_path / "other", local=True, epochs=3)


def bright_corner_model() -> keras.Model:
    """A convolution whose only feature map is the brightness; class 1 grows with its mean."""
    inputs = keras.Input((8, 8, 1))
    x = L.Rescaling(1 / 255)(inputs)
    x = L.Conv2D(1, 1, activation="relu", use_bias=False, kernel_initializer="ones", name="brightness")(x)
    x = L.GlobalAveragePooling2D()(x)
    outputs = L.Dense(1, activation="sigmoid", kernel_initializer="ones")(x)
    return keras.Model(inputs, outputs)


def test_heatmaps_mark_the_bright_corner() -> None:
    images = np.zeros((2, 8, 8, 1), np.uint8)
    images[0, :2, :2] = 255
    images[1, 6:, 6:] = 255
    heatmaps = glassbox.heatmaps(bright_corner_model(), images, classes=[1, 1])
    assert heatmaps.maps.shape == (2, 8, 8)
    np.testing.assert_allclose(heatmaps.maps, images[..., 0] / 255, atol=1e-6)
    assert heatmaps.class_names == ("class_0", "class_1")
    assert heatmaps.overlay(0).size == (160, 160)
    assert heatmaps._repr_html_().count("<img ") == 2
    with pytest.raises(glassbox.ConfigError, match="method=cam"):
        glassbox.heatmaps(bright_corner_model(), images, method="cam")
    with pytest.raises(glassbox.ConfigError, match=r"images of shape \(8, 8, 1\)"):
        glassbox.heatmaps(bright_corner_model(), images[:, :4])


def test_activations_of_every_layer() -> None:
    image = np.zeros((8, 8, 1), np.uint8)
    image[:2] = 255
    activations = glassbox.activations(bright_corner_model(), image)
    np.testing.assert_allclose(activations.outputs["brightness"], image / 255, atol=1e-6)
    assert activations.sparsity()["brightness"] == 0.75
    assert activations.picture("brightness").size == (56, 56)
    assert "brightness: 8 x 8 x 1, sparsity 75%" in activations._repr_html_()


def test_report_and_preview(tmp_path: Path, run: glassbox.TrainedRun, shards: glassbox.ShardSet) -> None:
    page = run.report(patterns=0, trust_images=0)
    assert page == run.path / "report/index.html"
    assert page.is_file()
    preview = glassbox.preview(shards, {"flip": True}, tmp_path / "preview", data={"image_size": 8}, rows=2)
    assert preview.is_file()
    with pytest.raises(glassbox.ConfigError, match="data and out"):
        glassbox.report(run.path / "model.keras")


def test_paths_and_numpy_values_are_settings(shards: glassbox.ShardSet, tmp_path: Path) -> None:
    config = glassbox.load_config("demo", shards, model=tmp_path / "m.keras", epochs=np.int64(2))
    assert config.model == str(tmp_path / "m.keras")
    assert config.epochs == 2
    with pytest.raises(glassbox.ConfigError, match="a plain value"):
        glassbox.load_config("demo", shards, epochs=object())


@pytest.mark.parametrize("classes", [[0], [0, 2], [0, -1]])
def test_heatmaps_need_a_class_of_the_model_for_every_image(classes: list[int]) -> None:
    with pytest.raises(glassbox.ConfigError, match="one class from 0 to 1 per image, of 2"):
        glassbox.heatmaps(bright_corner_model(), np.zeros((2, 8, 8, 1), np.uint8), classes=classes)


def test_wrong_arguments_are_errors_that_name_the_fix(shards: glassbox.ShardSet, tmp_path: Path) -> None:
    with pytest.raises(glassbox.ConfigError, match="no images"):
        glassbox.heatmaps(bright_corner_model(), np.zeros((0, 8, 8, 1), np.uint8))
    with pytest.raises(glassbox.ConfigError, match="image_size"):
        shards.images([0], size=-4)
    with pytest.raises(glassbox.ConfigError, match="batch_size='4'"):
        shards.dataset(batch_size="4")
    with pytest.raises(glassbox.ConfigError, match="does not exist"):
        glassbox.report(tmp_path / "no_such_run")
