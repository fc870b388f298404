"""Presets and overrides become one checked configuration, or one clear error."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.errors import ConfigError
from pipelines.spec import AugmentSpec
from service.config import load_config, preset_comment, preset_names
from service.runs import Run


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_loads_and_names_its_expected_result(name: str) -> None:
    config = load_config(name, "shards")
    assert config.preset == name
    assert "%" in preset_comment(name)


def test_published_settings() -> None:
    config = load_config("cats_dogs_small_dropout", "shards")
    assert (config.optimizer.name, config.optimizer.learning_rate, config.global_batch, config.epochs) == (
        "rmsprop",
        1e-4,
        20,
        100,
    )
    assert config.augment is not None
    changes = {"rotation": 40, "shift": 0.2, "shear": 0.2, "zoom": 0.2, "flip": True, "fill": "nearest"}
    assert config.augment == AugmentSpec(**changes)
    assert load_config("cats_dogs_lecture", "shards").global_batch == 128
    assert load_config("mnist_mlp", "shards").optimizer.learning_rate == 0.01


def test_overrides_reach_into_groups_and_keep_the_rest() -> None:
    config = load_config(
        "cats_dogs_small",
        "shards",
        ["optimizer.learning_rate=1e-3", "epochs=2", "augment.flip=true", "xla=on"],
    )
    assert (config.optimizer.name, config.optimizer.learning_rate, config.epochs, config.xla) == (
        "rmsprop",
        1e-3,
        2,
        "on",
    )
    assert config.augment is not None
    assert (config.augment.flip, config.augment.rotation) == (True, 0)
    assert load_config("cats_dogs_small", "shards", ["epochs=010"]).epochs == 10


@pytest.mark.parametrize("value", ["96x", "[96]", "[96,96,3]", "", "-96", "0x5", "0", "96.5", "x"])
def test_a_wrong_image_size_is_one_clear_error(value: str) -> None:
    with pytest.raises(ConfigError, match=r"Expected data\.image_size.*Received: data\.image_size"):
        load_config("cats_dogs_small", "shards", [f"data.image_size={value}"])


@pytest.mark.parametrize("value", ["96", "96x96", "[96, 96]"])
def test_an_image_size_is_written_in_several_ways(value: str) -> None:
    config = load_config("cats_dogs_small", "shards", [f"data.image_size={value}", f"augment.size={value}"])
    assert config.model_dump(mode="json")["data"]["image_size"] == [96, 96]
    assert config.model_dump(mode="json")["augment"]["size"] == [96, 96]


def test_an_augmentation_of_your_own_is_a_key_on_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "my.blur.py"
    path.write_text(
        "from pipelines.augment.base import PixelAugmentation\n"
        "from pipelines.settings import Spec\n"
        "class Blur(PixelAugmentation):\n"
        "    class Settings(Spec):\n"
        "        radius: float = 1.0\n"
        "    def draw(self, numbers, image): return numbers.is_active\n"
        "    def apply(self, images, parameters): return images\n"
    )
    for overrides, radius in (["=true"], 1.0), ([".radius=2.5"], 2.5), (["=true", ".radius=2.5"], 2.5):
        config = load_config("demo", "shards", [f"augment.{path}:Blur{text}" for text in overrides])
        assert config.augment is not None
        assert config.augment.extensions == {f"{path}:Blur": {"radius": radius}}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["epoch=3"], "epoch=3. Fix: use epochs"),
        (["optimizer.learning_rat=1"], "optimizer.learning_rat=1. Fix: use learning_rate"),
        (["augment.rotaton=1"], "Fix: use rotation"),
        (["epochs=two"], "epochs='two'"),
        (["epochs=0"], "epochs=0"),
        (["optimizer.learning_rate=nan"], "learning_rate"),
        (["epochs"], "key=value"),
        (["xla=maybe"], "xla='maybe'"),
        (["data=3"], "data=3"),
        (["data.mix={a: 1, b: 1}", "data.repeats=2"], "images of a mix are not repeated"),
        (["epochs=["], "YAML"),
        (["epochs=true"], "epochs=True"),
        (["optimizer.learning_rate=yes"], "learning_rate=True"),
        (["optimizer.nesterov=true"], "nesterov goes with sgd alone"),
        (["stages=[{epochs: 5, learning_rat: 1}]"], "stages.0.learning_rat=1. Fix: use learning_rate"),
        (
            ["early_stopping=2"],
            "as a group of settings: metric, patience, min_delta. Received: early_stopping=2",
        ),
        (["optimizer=adam"], "such as optimizer.name=VALUE"),
        (["shards=elsewhere"], "use --preset and --data"),
        (["preset=other"], "use --preset and --data"),
    ],
)
def test_wrong_overrides_are_one_clear_error(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config("mnist_cnn", "shards", overrides)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("override", "key", "expected"),
    [
        ("freeze=*", "freeze", ("*",)),
        ("freeze='*'", "freeze", ("*",)),
        ("freeze=block*", "freeze", ("block*",)),
        ("freeze=[*conv*, block1]", "freeze", ("*conv*", "block1")),
    ],
)
def test_patterns_need_no_quotes(override: str, key: str, expected: tuple[str, ...]) -> None:
    """A shell takes the quotes of `freeze='*'`."""
    assert getattr(load_config("demo", "shards", [override]), key) == expected


def test_patterns_in_stages_need_no_quotes() -> None:
    words = ["freeze=*", "epochs=20", "stages=[{epochs: 5, train: logits}, {epochs: 15, train: *}]"]
    assert [stage.train for stage in load_config("demo", "shards", words).stages] == [("logits",), ("*",)]


def test_the_configuration_of_a_run_may_be_a_preset(tmp_path: Path) -> None:
    function = tmp_path / "nets.py"
    function.write_text("def build(task): ...\n")
    run = Run(tmp_path / "run")
    run.create(load_config("demo", "shards", [f"model={function}:build"]).model_dump(mode="json"))
    config = load_config(str(run.config_path), "/data")
    assert config.model == f"{run.path}/code/nets.py:build"
    assert config.shards == "/data"


def test_paths_are_stored_as_absolute_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = ["model=net.keras", "weights=start.keras", "custom_objects=layers.py"]
    config = load_config("demo", "shards", settings)
    assert config.model == f"{tmp_path}/net.keras"
    assert config.weights == f"{tmp_path}/start.keras"
    assert config.custom_objects == (f"{tmp_path}/layers.py",)
    assert load_config("demo", "shards", ["model=nets.py:build"]).model == f"{tmp_path}/nets.py:build"
    assert load_config("demo", "shards", ["model=package.nets:build"]).model == "package.nets:build"


def test_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="use mnist_cnn"):
        load_config("mnist_cn", "shards")


def test_a_preset_may_be_a_file(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("model: mnist_cnn\nepochs: 1\n")
    assert load_config(str(mine), "shards").preset == "mine"
    mine.write_text("model: mnist_cnn\nshards: elsewhere\npreset: other\n")
    assert (load_config(str(mine), "/data").shards, load_config(str(mine), "/data").preset) == (
        "/data",
        "mine",
    )
    mine.write_bytes(b"model: \xff")
    with pytest.raises(ConfigError, match="YAML"):
        load_config(str(mine), "shards")
    for text, message in (
        ("model: [", "YAML"),
        ("- a", "keys and values"),
        ("epochs: 1", "a value for model"),
    ):
        mine.write_text(text)
        with pytest.raises(ConfigError, match=message):
            load_config(str(mine), "shards")


def test_the_sets_of_a_mix_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config("demo", "shards", ["data.mix={photos: 0.7, s3://bucket/drawings: 0.3}"])
    assert config.data.mix == {str(tmp_path / "photos"): 0.7, "s3://bucket/drawings": 0.3}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.mix={}"], r"data\.mix"),
        (["data.mix={photos: 0}"], r"data\.mix\.\S*photos"),
        (["data.epoch_images=100"], r"set data\.mix as well"),
        (["global_batch=20", "data.lanes=8"], r"data\.lanes=8 does not divide it: use global_batch=16 or 24"),
        (["data.window=12", "data.lanes=8"], r"use data\.window=8 or 16"),
    ],
)
def test_mixes_and_lanes_that_do_not_fit_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("demo", "shards", overrides)
