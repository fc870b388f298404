"""`glassbox plan` as a whole: figures of real networks, options, errors, and the documented roofline."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import glassbox
import pytest
from training_samples import noise_shards

import service.planning
from pipelines.shards.plan import plan_shards
from pipelines.spec import ShardSpec
from service.cli import main
from service.config import RunConfig

pytestmark = pytest.mark.heavy  # builds networks with Keras

SLOW = pytest.mark.slow  # builds ResNet-50 once more
README = Path(service.planning.__path__[0]) / "README.md"


def make_config(model: str, **settings: Any) -> RunConfig:
    content = {"preset": "plan", "shards": "none", "model": model, "global_batch": 4, **settings}
    return RunConfig.model_validate(content)


def build(config: RunConfig) -> tuple[Any, Any]:
    from service.planning.network import SyntheticBatches, build_planned_learner, describe_learner

    learner = build_planned_learner(config, SyntheticBatches(config, 40, ("a", "b", "c")))
    return learner, describe_learner(learner, config.model)


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ("mnist_mlp", {"optimizer": {"name": "sgd", "learning_rate": 0.1}}),
        ("mnist_cnn", {"optimizer": {"name": "adam"}, "ema": 0.9, "precision": "mixed_float16"}),
        ("cats_dogs_small_dropout", {"optimizer": {"name": "rmsprop"}, "freeze": "conv*"}),
    ],
)
def test_size_of_a_checkpoint_is_exact(model: str, settings: dict[str, Any], tmp_path: Path) -> None:
    from service.checkpoint import Position, save_checkpoint, snapshot

    data = {"image_size": [150, 150] if "dogs" in model else [28, 28], "channels": 1}
    learner, figures = build(make_config(model, data=data, **settings))
    path = save_checkpoint(tmp_path, snapshot(learner.variables), Position("data"), 1, config={})
    assert figures.checkpoint_bytes == (path / "state.npz").stat().st_size
    assert figures.optimizer_bytes == sum(v.numpy().nbytes for v in learner.variables["optimizer"])


def test_figures_of_resnet50() -> None:
    """4.09 G multiply-adds and 25,557,032 trainable parameters, as published with torchvision."""
    from service.planning.network import SyntheticBatches, build_planned_learner, describe_learner

    config = make_config("resnet50", data={"image_size": [224, 224]})
    batches = SyntheticBatches(config, 40, tuple(map(str, range(1000))))
    figures = describe_learner(build_planned_learner(config, batches), "resnet50")
    assert figures.trainable_parameters == 25_557_032
    assert figures.multiply_adds == 4_089_184_256
    # Three times the forward pass, without the gradient of the image: 64 filters of 7x7x3 at 112x112.
    image_gradient = 2 * 112 * 112 * 64 * 7 * 7 * 3
    assert figures.training_operations == 6 * figures.multiply_adds - image_gradient == 24_299_077_632
    assert figures.activation_values == 40_894_932


def test_frozen_layers_take_only_the_forward_pass() -> None:
    """The first block is frozen: its layers have no gradients, the next one those of its weights alone."""
    data = {"image_size": [28, 28], "channels": 1}
    _, whole = build(make_config("vit_tiny", data=data))
    assert whole.training_operations < 6 * whole.multiply_adds
    settings = {"data": {"image_size": [32, 32]}, "weights": "none"}
    learner, whole = build(make_config("vgg16", **settings))
    _, frozen = build(make_config("vgg16", freeze="block[1-4]*", **settings))
    layers = {layer.name: layer for layer in learner.model.layers}
    frozen_counts = [
        count_multiply_adds(layers[name]) for name in layers if re.match(r"block[1-4]_conv", name)
    ]
    first_that_learns = count_multiply_adds(layers["block5_conv1"])
    # Two of three passes of the frozen layers, of which the first never had a gradient of its input.
    saved = 4 * sum(frozen_counts) - 2 * frozen_counts[0] + 2 * first_that_learns
    assert whole.training_operations - frozen.training_operations == saved


def count_multiply_adds(layer: Any) -> int:
    """Multiply-adds of a convolution for one image."""
    _, height, width, _ = layer.output.shape
    rows, columns, inputs, outputs = layer.kernel.shape
    return int(height * width * rows * columns * inputs * outputs)


def run_plan(capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    assert main(["plan", "--json", *options]) == 0
    plan: dict[str, Any] = json.loads(capsys.readouterr().out)
    return plan


NUMBERS = ("--model", "mnist_mlp", "--size", "28", "--gpu", "h100", "--images")


def test_number_of_shards_is_that_of_the_builder(capsys: pytest.CaptureFixture[str]) -> None:
    plan = run_plan(capsys, *NUMBERS, "70001", "--validation-images", "5000", "--kb", "20")
    built = plan_shards({"train": 70_001, "validation": 5_000}, ShardSpec(shard_rows=4376))
    assert -(-70_001 // 16) == 4376  # 16 shards, because those of 96 MB would be fewer
    assert [split.shards for split in built.splits] == [16, 2]
    resources = plan["resources"]
    assert (resources["train_shards"], resources["validation_shards"]) == (16, 2)


def test_rates_and_settings_are_set(capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--hosts", "2", "--gpus", "4", "rates.decode=900", "data.cache=none", "epochs=3")
    plan = run_plan(capsys, *NUMBERS, "8000", "--kb", "20", *options)
    stages = {stage["name"]: stage for stage in plan["stages"]}
    assert stages["decode"]["delivered_images_per_second"] == 1800
    assert stages["decode"]["source"] == "as set"
    assert (plan["bottleneck"], plan["images_per_second"]) == ("decode", 1800)
    assert (plan["epochs"], plan["updates"], plan["global_batch"]) == (3, 12, 2048)
    assert any("global_batch: 2,048, which is 256 for each GPU" in note for note in plan["notes"])


def test_this_machine_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SECONDS", "CALL_SECONDS"):
        monkeypatch.setattr(f"service.planning.measure.{name}", 0.01)
    shards = noise_shards(tmp_path / "shards", rows=64, held_out=8)
    options = ("--preset", "demo", "--data", str(shards), "data.image_size=16", "global_batch=8")
    plan = run_plan(capsys, *options)
    assert plan["images"]["train"] == 64
    sources = {name: rate["source"] for name, rate in plan["rates"].items()}
    assert [sources[name] for name in ("decode", "feed", "step")] == ["measured here"] * 3
    assert plan["resources"]["train_shards"] == len(list(shards.glob("train-*.arrow")))


@pytest.mark.parametrize(
    ("options", "received"),
    [
        (["--model", "mnist_mlp"], "neither --data nor --images"),
        (["--images", "9"], "neither --preset nor --model"),
        (["--images", "0", "--model", "mnist_mlp"], "images=0"),
        (["--images", "9", "--data", "x", "--model", "mnist_mlp"], "--data with --images"),
        ([*NUMBERS, "9", "--gpu", "h1000"], "gpu=h1000"),
        ([*NUMBERS, "9", "--storage", "tape"], "storage=tape"),
        ([*NUMBERS, "9", "rates.decoder=1"], "decoder=1"),
        ([*NUMBERS, "9", "--gpus", "8", "global_batch=12"], "global_batch=12"),
        ([*NUMBERS, "9", "--hosts", "3", "data.lanes=2", "global_batch=12"], "workers=3 lanes=2"),
    ],
)
def test_errors_name_the_option(
    options: list[str], received: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *options]) == 2
    assert received in capsys.readouterr().err


def test_plan_from_python() -> None:
    settings = {"data.cache": "none", "epochs": 3}
    numbers = {"model": "mnist_mlp", "size": "28", "gpu": "h100", "images": 8000, "kb": 20}
    plan = glassbox.plan(rates={"decode": 900}, overrides=settings, **numbers)
    assert (plan.bottleneck, plan.images_per_second) == ("decode", 900)
    assert plan.hours == pytest.approx(3 * 8192 / 900 / 3600, rel=1e-3)
    with pytest.raises(glassbox.ConfigError, match="kbs=20"):
        glassbox.plan(images=8000, kbs=20)


def read_examples() -> list[tuple[str, str]]:
    """Commands of the README that are followed by what they print."""
    pattern = re.compile(r"```sh\nglassbox (plan [^\n]+)\n```\n\n```text\n(.*?)```", re.S)
    return pattern.findall(README.read_text())


@pytest.mark.parametrize("index", [0, pytest.param(1, marks=SLOW), pytest.param(2, marks=SLOW)])
def test_documented_rooflines(index: int, capsys: pytest.CaptureFixture[str]) -> None:
    examples = read_examples()
    assert len(examples) == 3
    command, printed = examples[index]
    assert main(command.split()) == 0
    assert capsys.readouterr().out.strip() == printed.strip()
