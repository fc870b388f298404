"""The loop in this process, without Ray: that every setting of a run reaches the training."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from shard_samples import record, write_shards

from pipelines.errors import ConfigError, TrainingError
from pipelines.input.batches import Batches
from pipelines.records import Record
from service.checkpoint import restore_latest, variables_of
from service.config import OptimizerSpec, RunConfig
from service.models import MODELS, Task, head
from service.runs import Run
from service.training import loop
from service.training.loop import build_trainer, fit, make_optimizer
from service.training.step import Steps
from service.training.strategy import choose_strategy


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise of two classes, the second a little brighter: 10 training and 6 validation images."""
    draw = np.random.default_rng(0)

    def noise(split: str, i: int) -> Record:
        return record(draw.integers(40 * (i % 2), 200, (32, 32, 3)).astype(np.uint8), i % 2, f"{split}/{i}")

    splits = {split: [noise(split, i) for i in range(rows)] for split, rows in (("train", 10), ("validation", 6))}
    return write_shards(tmp_path_factory.mktemp("loop") / "shards", ("dim", "bright"), splits)


@pytest.fixture(scope="module", autouse=True)
def tiny_model() -> Iterator[None]:
    """Registers a model with dropout, and takes it out again."""

    @MODELS.register("tiny_dropout")
    def tiny_dropout(task: Task) -> keras.Model:
        inputs = keras.Input(task.shape)
        x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(inputs))
        return keras.Model(inputs, head(keras.layers.Dropout(0.5)(x), task.classes))

    yield
    del MODELS._items["tiny_dropout"]


def config_for(shards: Path, **changes: Any) -> RunConfig:
    settings = {"preset": "test", "shards": str(shards), "model": "tiny_dropout", "data": {"image_size": [32, 32]}, "global_batch": 4}
    return RunConfig.model_validate(settings | {"epochs": 3, "seed": 5, "augment": {"rotation": 20, "flip": True}} | changes)


def trained(config: RunConfig, path: Path) -> tuple[Run, list[dict[str, float]]]:
    run = Run(path)
    if not path.exists():
        run.create(config.model_dump(mode="json"))
    reported: list[dict[str, float]] = []
    fit(config, run, reported.append)
    return run, reported


def state(run: Run, epoch: int) -> dict[str, np.ndarray]:
    with np.load(run.checkpoints / f"epoch-{epoch:04d}" / "state.npz") as file:
        return dict(file)


def test_a_run_continued_at_any_epoch_ends_with_the_same_weights(shards: Path, tmp_path: Path) -> None:
    straight, reported = trained(config_for(shards), tmp_path / "straight")
    assert reported == straight.metrics()
    for epoch in (1, 2):
        trained(config_for(shards, epochs=epoch), tmp_path / f"from{epoch}")
        resumed, reported = trained(config_for(shards), tmp_path / f"from{epoch}")
        assert [metrics["epoch"] for metrics in reported] == list(range(epoch + 1, 4))
        whole, again = state(straight, 3), state(resumed, 3)
        assert len(whole) > 2  # the weights, and the optimizer's
        for name in whole:
            np.testing.assert_array_equal(again[name], whole[name])


@pytest.mark.parametrize("changes", [{"cache": "host"}, {"cache": "device"}, {"backend": "dali"}], ids=str)
def test_where_images_come_from_changes_nothing(shards: Path, tmp_path: Path, changes: dict[str, str]) -> None:
    if changes.get("backend") == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    size = {"image_size": [32, 32]}  # that of the images: nothing is resized, and DALI agrees to the bit
    weights = []
    for name, data in (("plain", {"cache": "none", "backend": "tfdata"}), ("other", {"cache": "none"} | changes)):
        run, _ = trained(config_for(shards, data=size | data, epochs=2), tmp_path / name)
        weights.append(state(run, 2))
        assert run.status()["caches"]["train"].startswith(f"cache: {data['cache']}")
    for name, expected in weights[0].items():
        np.testing.assert_array_equal(weights[1][name], expected)


def test_images_are_mixed_only_in_whole_pairs(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"even batch .* batch=5"):
        trained(config_for(shards, global_batch=5, augment={"mixup": 0.2}), tmp_path / "run")


def test_each_epoch_has_its_own_order_augmentation_and_dropout(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[list[int], np.ndarray]] = []
    seeded: list[tuple[int, int]] = []
    train, start = Steps.train, Steps.start_epoch
    monkeypatch.setattr(Steps, "train", lambda self, b: (seen.append((b["row"].numpy().tolist(), b["affine"].numpy())), train(self, b)))
    monkeypatch.setattr(Steps, "start_epoch", lambda self, epoch, seed: (seeded.append((epoch, seed)), start(self, epoch, seed)))
    config = config_for(shards)
    trained(config, tmp_path / "run")
    expected = Batches(shards, "train", config.data, 4, seed=5, augment=config.augment)
    for i, batch in enumerate(batch for epoch in (1, 2, 3) for batch in expected.epoch(epoch)):
        assert seen[i][0] == batch["row"].numpy().tolist()
        np.testing.assert_array_equal(seen[i][1], batch["affine"])
    assert len(seen) == 9
    orders = [[row for rows, _ in seen[start : start + 3] for row in rows] for start in (0, 3, 6)]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert seeded == [(1, 5), (2, 5), (3, 5)]


def test_the_model_of_the_best_epoch_is_kept(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores, saved = iter([0.5, 0.9, 0.4, 0.6]), []
    monkeypatch.setattr(loop.Trainer, "evaluate", lambda self, validation: {"val_loss": 1.0, "val_accuracy": next(scores)})
    monkeypatch.setattr(loop, "save_model", lambda model, run: saved.append(len(run.metrics()) + 1))
    trained(config_for(shards, epochs=4), tmp_path / "run")
    assert saved == [1, 2]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_run_that_diverges_stops_and_keeps_what_was_good(shards: Path, tmp_path: Path) -> None:
    config = config_for(shards, optimizer={"name": "sgd", "learning_rate": 1e38})
    with pytest.raises(TrainingError, match=r"loss=(nan|inf)"):
        trained(config, tmp_path / "run")
    assert not (tmp_path / "run" / "model.keras").exists()
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_lost_checkpoints_do_not_restart_a_run_in_silence(shards: Path, tmp_path: Path) -> None:
    run, _ = trained(config_for(shards, epochs=1), tmp_path / "run")
    for path in run.checkpoints.iterdir():
        path.rename(tmp_path / path.name)
    before = run.metrics()
    with pytest.raises(TrainingError, match="checkpoints of the finished epochs"):
        fit(config_for(shards), run, lambda metrics: None)
    assert run.metrics() == before


def test_metrics_are_plain_json_with_speed(shards: Path, tmp_path: Path) -> None:
    run, _ = trained(config_for(shards, epochs=1), tmp_path / "run")
    (line,) = run.metrics_path.read_text().splitlines()
    metrics = json.loads(line)
    assert metrics["images_per_second"] == pytest.approx(10 / metrics["seconds"])
    assert 0 < metrics["input_wait"] < 1
    assert metrics["learning_rate"] == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        (OptimizerSpec(name="sgd", learning_rate=0.03, momentum=0.7), "SGD"),
        (OptimizerSpec(name="adam", learning_rate=0.03), "Adam"),
        (OptimizerSpec(name="rmsprop", learning_rate=0.03), "RMSprop"),
    ],
)
def test_the_optimizer_is_the_one_that_was_named(spec: OptimizerSpec, kind: str) -> None:
    made = make_optimizer(spec)
    assert type(made).__name__ == kind
    assert float(made.learning_rate) == pytest.approx(0.03)
    assert getattr(made, "momentum", 0.0) == spec.momentum


def test_the_seed_decides_the_first_weights(shards: Path) -> None:
    def weights(seed: int) -> np.ndarray:
        config = config_for(shards, seed=seed)
        return np.asarray(
            build_trainer(config, choose_strategy(4), Batches(shards, "train", config.data, 4)).model.get_layer("logits").kernel
        )

    np.testing.assert_array_equal(weights(1), weights(1))
    assert not np.array_equal(weights(1), weights(2))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_model_is_built_for_the_training_split(shards: Path, monkeypatch: pytest.MonkeyPatch, channels: int) -> None:
    tasks: list[Task] = []
    build = loop.build_model
    monkeypatch.setattr(loop, "build_model", lambda name, task: (tasks.append(task), build(name, task))[1])
    config = config_for(shards, data={"image_size": [16, 24], "channels": channels})
    train = Batches(shards, "train", config.data, 4)
    build_trainer(config, choose_strategy(4), train)
    split = train.manifest.split("train")
    (task,) = tasks
    assert (task.shape, task.classes) == ((16, 24, channels), 2)
    if channels == 3:
        assert (task.mean, task.std) == (split.mean, split.std)
    else:
        np.testing.assert_allclose(task.mean[0], 0.299 * split.mean[0] + 0.587 * split.mean[1] + 0.114 * split.mean[2])


@pytest.mark.parametrize(("choice", "expected"), [("on", True), ("off", False), ("auto", False)])
def test_xla_is_on_where_it_was_asked_for(shards: Path, monkeypatch: pytest.MonkeyPatch, choice: str, expected: bool) -> None:
    seen: list[bool] = []
    init = Steps.__init__
    monkeypatch.setattr(Steps, "__init__", lambda self, *args: (seen.append(args[3].xla), init(self, *args))[1])
    config = config_for(shards, xla=choice)
    build_trainer(config, choose_strategy(4), Batches(shards, "train", config.data, 4))
    assert seen == [expected]


def test_another_shard_set_is_refused(shards: Path, tmp_path: Path) -> None:
    config = config_for(shards, epochs=1, augment=None)
    run, _ = trained(config, tmp_path / "run")
    trainer = build_trainer(config, choose_strategy(4), Batches(shards, "train", config.data, 4))
    with pytest.raises(ConfigError, match="shard set the run began with"):
        restore_latest(run.checkpoints, variables_of(trainer.model, trainer.optimizer), "another digest")
