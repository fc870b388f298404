"""The loop in this process, without Ray: every setting of a run reaches the training."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorboardX import SummaryWriter
from training_samples import (
    config_for,
    create_run,
    fit_run,
    noise_shards,
    read_checkpoint,
    read_logged_rows,
)

from pipelines.errors import ConfigError, TrainingError
from pipelines.input.batches import Batches, read_rows
from service.config import RunConfig
from service.runs import Run
from service.training.evaluation import Evaluation
from service.training.learner import build_network
from service.training.loop import Loop, fit
from service.training.strategy import WorkerContext
from service.training.telemetry import ROWS_LOG

SGD = {"name": "sgd", "learning_rate": 0.05, "momentum": 0.9}
PLAIN: dict[str, Any] = {"augment": None, "optimizer": SGD}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """27 training images, which are four steps an epoch, and 10 validation images."""
    return noise_shards(tmp_path_factory.mktemp("loop") / "shards")


def build_new_network(config: RunConfig) -> keras.Model:
    """The network before its first update."""
    train = Batches(config.shards, "train", config.data, config.global_batch)
    return build_network(config, tf.distribute.get_strategy(), train)


def predict_class_1(model: keras.Model, images: np.ndarray | tf.Tensor) -> np.ndarray:
    """The probability of class 1, float64 `[B]`."""
    return model.predict(np.asarray(images, np.float32), verbose=0)[:, 0].astype(np.float64)


def cross_entropy(labels: np.ndarray, probabilities: np.ndarray, smoothing: float = 0.0) -> np.ndarray:
    """The loss of each image, float64 `[B]`."""
    target = (1 - smoothing) * labels + smoothing / 2
    return -(target * np.log(probabilities) + (1 - target) * np.log(1 - probabilities))


def assert_equal_bits(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> None:
    for expected, array in zip(first, second, strict=True):
        np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize(
    "data",
    [{"cache": "host"}, {"cache": "device"}, {"cache": "none", "backend": "dali"}],
    ids=["host", "device", "dali"],
)
def test_the_weights_do_not_depend_on_cache_and_decoder(
    shards: Path, tmp_path: Path, data: dict[str, Any]
) -> None:
    """To the bit, because nothing is resized."""
    if data.get("backend") == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    checkpoints = []
    for name, settings in (("plain", {"cache": "none"}), ("other", data)):
        settings = {"image_size": [12, 12], "backend": "tfdata"} | settings
        run = fit_run(tmp_path / name, config_for(shards, epochs=1, data=settings))
        assert run.status()["caches"]["train"].startswith(f"cache: {settings['cache']}")
        checkpoints.append(read_checkpoint(run, "epoch-0001"))
    assert_equal_bits(*checkpoints)


@pytest.mark.parametrize("backend", ["tfdata", "dali"])
def test_logging_rows_changes_nothing(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    """The logged rows are those of the order, in whichever loop, and the weights are equal to the bit."""
    data = {"image_size": [12, 12], "backend": backend}
    if backend == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
        data["cache"] = "none"
    config = config_for(shards, data=data, accumulate=3, ema=0.9, optimizer=SGD, steps_per_call=2, epochs=2)
    monkeypatch.delenv(ROWS_LOG, raising=False)
    plain = fit_run(tmp_path / "plain", config)
    monkeypatch.setenv(ROWS_LOG, "1")
    logged = fit_run(tmp_path / "logged", config)
    assert_equal_bits(read_checkpoint(plain, "epoch-0002"), read_checkpoint(logged, "epoch-0002"))
    batches = Batches(shards, "train", config.data, 8, seed=5)
    assert read_logged_rows(logged) == {
        (epoch, step): batches.find_rows(epoch, step).tolist() for epoch in (1, 2) for step in range(4)
    }
    assert read_logged_rows(plain) == {}


@pytest.mark.parametrize("steps_per_call", [3, "auto"])
def test_a_run_is_traced_once_even_with_a_profile(
    shards: Path, tmp_path: Path, steps_per_call: int | str
) -> None:
    config = config_for(shards, steps_per_call=steps_per_call, profile=steps_per_call == "auto", **PLAIN)
    loop = Loop(config, create_run(tmp_path / "run", config), WorkerContext())
    loop.run_epochs()
    assert loop.learner.steps.trace_count == 1
    assert int(loop.learner.optimizer.iterations.numpy()) == 12
    profiles = list(loop.run.profile.glob("plugins/profile/*/*.xplane.pb"))
    assert len(profiles) == int(config.profile)


@pytest.mark.parametrize(
    ("accumulate", "factors"), [(1, (1 + np.cos(np.pi * np.array([0, 4, 8]) / 9)) / 2), (3, [1 / 3, 1, 0.25])]
)
def test_each_update_has_the_learning_rate_of_the_schedule(
    shards: Path, tmp_path: Path, accumulate: int, factors: Any
) -> None:
    """With three updates of warmup; the metrics show the last update of each epoch, of four or of two."""
    config = config_for(
        shards,
        schedule={"name": "cosine", "warmup_steps": 3},
        accumulate=accumulate,
        steps_per_call=1,
        **PLAIN,
    )
    rates = [metrics["learning_rate"] for metrics in fit_run(tmp_path / "run", config).metrics()]
    np.testing.assert_allclose(rates, 0.05 * np.array(factors), rtol=1e-6)


def test_label_smoothing_and_class_weights_reach_the_loss(shards: Path, tmp_path: Path) -> None:
    config = config_for(
        shards,
        epochs=1,
        augment=None,
        optimizer=SGD | {"learning_rate": 1e-30},
        label_smoothing=0.2,
        class_weights={"class1": 3.0},
    )
    run = fit_run(tmp_path / "run", config)
    data = read_rows(shards, "train", config.data, range(27))
    probabilities = predict_class_1(build_new_network(config), data["image"])
    losses = cross_entropy(data["label"], probabilities, smoothing=0.2)
    losses *= np.where(data["label"] == 1, 3.0, 1.0)
    (metrics,) = run.metrics()
    assert metrics["loss"] == pytest.approx(losses.mean(), rel=1e-5)  # of 27 images, not of 32 places
    assert metrics["accuracy"] == pytest.approx(((probabilities > 0.5) == data["label"]).mean())


def test_training_images_can_have_a_size_of_their_own(shards: Path, tmp_path: Path) -> None:
    """At a rate that changes nothing, the training loss is that of 8x10, the validation loss of 12x12."""
    config = config_for(
        shards,
        model="tiny_pooled",
        epochs=1,
        augment={"size": [8, 10]},
        optimizer=SGD | {"learning_rate": 1e-30},
        label_smoothing=0.1,
    )
    run = fit_run(tmp_path / "run", config)
    whole = build_new_network(config)
    small = build_new_network(config_for(shards, model="tiny_pooled", data={"image_size": [8, 10]}))
    small.set_weights(whole.get_weights())
    losses = []
    for split, rows, model, smoothing in (("train", 27, small, 0.1), ("validation", 10, whole, 0.0)):
        data = read_rows(shards, split, config.data, range(rows))
        images = tf.image.resize(data["image"], model.input_shape[1:3])
        probabilities = predict_class_1(model, images)
        losses.append(cross_entropy(data["label"], probabilities, smoothing).mean())
    (metrics,) = run.metrics()
    assert [metrics["loss"], metrics["val_loss"]] == pytest.approx(losses, rel=1e-5)
    assert abs(losses[0] - losses[1]) > 1e-3
    assert keras.models.load_model(run.model_path).input_shape == (None, 12, 12, 3)


def test_the_gradient_is_clipped_to_the_norm_of_the_recipe(shards: Path, tmp_path: Path) -> None:
    """Four updates of rate 1 along gradients that are clipped to a hundredth."""
    optimizer = {"name": "sgd", "learning_rate": 1.0, "clip_norm": 0.01}
    config = config_for(shards, epochs=1, augment=None, optimizer=optimizer)
    run = fit_run(tmp_path / "run", config)
    after = read_checkpoint(run, "epoch-0001", "model")
    before = build_new_network(config).get_weights()
    squares = sum(((new - old) ** 2).sum() for new, old in zip(after, before, strict=True))
    assert 0.02 < np.sqrt(squares) < 0.0401


def test_metrics_are_plain_json_with_the_throughput(shards: Path, tmp_path: Path) -> None:
    run = fit_run(tmp_path / "run", config_for(shards, epochs=2, evaluate_every=5, **PLAIN))
    first, last = (json.loads(line) for line in run.metrics_path.read_text().splitlines())
    assert first["images_per_second"] == pytest.approx(27 / first["seconds"])
    assert 0 < first["input_wait"] < 1
    assert not any(name.startswith("val_") for name in first)
    # the last epoch is evaluated whatever the interval
    assert {"val_loss", "val_accuracy", "val_auc"} <= last.keys()
    phases = {"setup", "first call", "training", "waiting for input", "evaluation", "checkpoints"}
    assert run.status()["timings"].keys() >= phases


def test_the_average_is_evaluated_and_saved(shards: Path, tmp_path: Path) -> None:
    config = config_for(shards, epochs=1, ema=0.99, **PLAIN)
    run = fit_run(tmp_path / "run", config)
    average = read_checkpoint(run, "epoch-0001", "training")
    weights = read_checkpoint(run, "epoch-0001", "model")
    model = keras.models.load_model(run.model_path)
    assert_equal_bits(average, model.get_weights())
    assert not any(np.array_equal(*pair) for pair in zip(average, weights, strict=True))

    loop = Loop(config, run, WorkerContext())
    measured = {name: value for name, value in run.metrics()[0].items() if name.startswith("val_")}
    with loop.learner.use_evaluation_weights():
        assert loop.evaluation.compute_metrics() == measured
    assert loop.evaluation.compute_metrics()["val_loss"] != measured["val_loss"]


def test_the_model_of_the_best_epoch_is_kept(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.5, 0.9, 0.4, 0.6])
    monkeypatch.setattr(
        Evaluation, "compute_metrics", lambda self: {"val_loss": 1.0, "val_accuracy": next(scores)}
    )
    run = fit_run(tmp_path / "run", config_for(shards, epochs=4, keep_checkpoints=1, **PLAIN))
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["epoch-0002", "epoch-0004"]
    best = keras.models.load_model(run.model_path)
    assert_equal_bits(read_checkpoint(run, "epoch-0002", "model"), best.get_weights())


def test_a_checkpoint_exists_before_the_metrics_of_its_epoch(shards: Path, tmp_path: Path) -> None:
    observed: list[tuple[int, list[str], bool]] = []

    class ObservedRun(Run):
        def write_metrics(self, epochs: Any) -> None:
            names = sorted(path.name for path in self.checkpoints.iterdir())
            observed.append((len(epochs), names, self.model_path.exists()))
            super().write_metrics(epochs)

    config = config_for(shards, epochs=2, **PLAIN)
    create_run(tmp_path / "run", config)
    fit(config, ObservedRun(tmp_path / "run"))
    assert observed == [
        (0, [], False),
        (1, ["epoch-0001"], True),
        (2, ["epoch-0001", "epoch-0002"], True),
    ]


def test_an_interrupted_run_writes_what_is_pending_before_its_log_is_closed(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_writing = threading.Event()
    is_interrupted = threading.Event()
    evaluations = iter([{"val_loss": 1.0, "val_accuracy": 0.5}])

    def evaluate(evaluation: Evaluation) -> dict[str, float]:
        for metrics in evaluations:
            return metrics
        is_writing.wait()
        is_interrupted.set()
        raise KeyboardInterrupt

    class SlowRun(Run):
        def write_metrics(self, epochs: Any) -> None:
            if epochs:
                is_writing.set()
                is_interrupted.wait()
                time.sleep(0.3)  # a log that does not wait for this write is closed by now
                events.append("metrics written")
            super().write_metrics(epochs)

    def close(writer: SummaryWriter) -> None:
        events.append("log closed")
        original_close(writer)

    events: list[str] = []
    original_close = SummaryWriter.close
    monkeypatch.setattr(SummaryWriter, "close", close)
    monkeypatch.setattr(Evaluation, "compute_metrics", evaluate)
    create_run(tmp_path / "run", config_for(shards, epochs=9, **PLAIN))
    run = SlowRun(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        fit(config_for(shards, epochs=9, **PLAIN), run)
    assert events == ["metrics written", "log closed", "log closed"]
    assert [epoch["epoch"] for epoch in run.metrics()] == [1]


def test_a_run_that_stops_improving_ends(shards: Path, tmp_path: Path) -> None:
    stopping = {"metric": "loss", "patience": 2, "min_delta": 10.0}
    config = config_for(shards, epochs=9, early_stopping=stopping, **PLAIN)
    run = fit_run(tmp_path / "run", config)
    assert len(run.metrics()) == 3
    first_loss = run.metrics()[0]["loss"]
    sentence = (
        "stopped early after epoch 3 of 9: loss has not improved by more than 10 since epoch 1 "
        f"({first_loss:.4f})"
    )
    assert run.status()["reason"] == sentence
    assert sentence in run.status()["notices"]
    fit_run(run.path, config)  # has nothing left to do
    assert len(run.metrics()) == 3


def test_hidden_layers_compute_in_the_precision_of_the_recipe(shards: Path, tmp_path: Path) -> None:
    config = config_for(shards, epochs=1, **PLAIN)
    exact = fit_run(tmp_path / "exact", config)
    mixed = fit_run(
        tmp_path / "mixed", RunConfig.model_validate(config.model_dump() | {"precision": "mixed_bfloat16"})
    )
    model = keras.models.load_model(mixed.model_path)
    assert model.get_layer("hidden").compute_dtype == "bfloat16"
    assert model.get_layer("logits").compute_dtype == "float32"
    pairs = zip(
        read_checkpoint(exact, "epoch-0001", "model"),
        read_checkpoint(mixed, "epoch-0001", "model"),
        strict=True,
    )
    for expected, array in pairs:
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, expected, atol=0.02)
        assert not np.array_equal(array, expected)
    assert keras.config.dtype_policy().name == "float32"


def test_the_seed_determines_the_first_weights(shards: Path) -> None:
    first, same, other = (
        build_new_network(config_for(shards, seed=seed)).get_layer("logits").kernel.numpy()
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"global_batch": 5, "augment": {"mixup": 0.2}}, r"even batch .* batch=5"),
        ({"xla": "on", "batch_norm": "synchronized", "model": "tiny_normalized"}, "batch_norm=averaged"),
        ({"augment": {"size": [8, 8]}}, r"images of that size.* augment.size=\[8, 8\]"),
        ({"early_stopping": {"metric": "val_loss"}}, "no validation split"),
        ({"model": "linaer"}, "use linear"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(
    shards: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    data = noise_shards(tmp_path / "alone", rows=3, held_out=0) if "early_stopping" in changes else shards
    with pytest.raises(ConfigError, match=message):
        fit_run(tmp_path / "run", config_for(data, **changes))


def test_a_run_without_its_checkpoints_does_not_start_again(shards: Path, tmp_path: Path) -> None:
    config = config_for(shards, epochs=1, **PLAIN)
    run = fit_run(tmp_path / "run", config)
    for path in run.checkpoints.iterdir():
        path.rename(tmp_path / path.name)
    before = run.metrics()
    with pytest.raises(TrainingError, match="checkpoints of the finished epochs"):
        fit(config, run)
    assert run.metrics() == before
