"""The loop in this process, without Ray: that every setting of a run reaches the training."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from training_samples import config_for, fit_run, read_logged_rows, create_run, noise_shards, read_checkpoint

from pipelines.errors import ConfigError, TrainingError
from pipelines.input.batches import Batches, read_rows
from service.config import RunConfig
from service.runs import Run
from service.training.evaluation import Evaluation
from service.training.features import Views
from service.training.learner import build_network
from service.training.loop import Loop, fit
from service.training.statistics import PreciseStatistics
from service.training.strategy import WorkerContext
from service.training.telemetry import ROWS_LOG

SGD = {"name": "sgd", "learning_rate": 0.05, "momentum": 0.9}
PLAIN: dict[str, Any] = {"augment": None, "optimizer": SGD}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """27 training images, four steps an epoch, and 10 of validation."""
    return noise_shards(tmp_path_factory.mktemp("loop") / "shards")


def fresh(config: RunConfig) -> keras.Model:
    """The network before its first update."""
    return build_network(
        config,
        tf.distribute.get_strategy(),
        Batches(config.shards, "train", config.data, config.global_batch),
    )


def test_where_images_come_from_changes_nothing(shards: Path, tmp_path: Path) -> None:
    """Nothing is resized, so that DALI agrees to the bit."""
    kinds = [{"cache": "none"}, {"cache": "host"}, {"cache": "device"}, {"cache": "none", "backend": "dali"}]
    found = []
    for n, kind in enumerate(kinds):
        if kind.get("backend") == "dali":
            pytest.importorskip("nvidia.dali", reason="DALI is not installed")
        config = config_for(shards, epochs=2, data={"image_size": [12, 12], "backend": "tfdata"} | kind)
        run = fit_run(tmp_path / str(n), config)
        assert run.status()["caches"]["train"].startswith(f"cache: {kind['cache']}")
        found.append(read_checkpoint(run, "epoch-0002"))
    for other in found[1:]:
        for expected, array in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(array, expected)


def test_rows_one_by_one_train_like_many_in_a_call(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_for(shards, accumulate=3, ema=0.9, optimizer=SGD, steps_per_call=2, epochs=2)
    plain = fit_run(tmp_path / "plain", config)
    monkeypatch.setenv(ROWS_LOG, "1")
    logged = fit_run(tmp_path / "logged", config)
    for expected, array in zip(read_checkpoint(plain, "epoch-0002"), read_checkpoint(logged, "epoch-0002"), strict=True):
        np.testing.assert_allclose(array, expected, rtol=0, atol=1e-6)
    batches = Batches(shards, "train", config.data, 8, seed=5)
    assert read_logged_rows(logged) == {
        (epoch, step): batches.rows_of(epoch, step).tolist() for epoch in (1, 2) for step in range(4)
    }
    assert not list(plain.path.glob("rows-*"))


@pytest.mark.parametrize("steps_per_call", [3, "auto"])
def test_a_run_is_traced_once_profile_and_all(
    shards: Path, tmp_path: Path, steps_per_call: int | str
) -> None:
    config = config_for(shards, steps_per_call=steps_per_call, profile=steps_per_call == "auto", **PLAIN)
    loop = Loop(config, create_run(tmp_path / "run", config), WorkerContext())
    loop.run_epochs()
    assert loop.learner.steps.trace_count == 1
    assert loop.evaluation._score_batch.experimental_get_tracing_count() == 1
    assert int(loop.learner.optimizer.iterations.numpy()) == 12
    assert len(list(loop.run.events.glob("profile/plugins/profile/*/*.xplane.pb"))) == int(config.profile)


@pytest.mark.parametrize(
    ("accumulate", "factors"), [(1, (1 + np.cos(np.pi * np.array([0, 4, 8]) / 9)) / 2), (3, [1 / 3, 1, 0.25])]
)
def test_the_rate_is_that_of_the_schedule_at_each_update(
    shards: Path, tmp_path: Path, accumulate: int, factors: Any
) -> None:
    """Three updates of warmup; looked at are the last ones of the epochs, which have four or two."""
    config = config_for(
        shards,
        schedule={"name": "cosine", "warmup_steps": 3},
        accumulate=accumulate,
        steps_per_call=1,
        **PLAIN,
    )
    rates = [metrics["learning_rate"] for metrics in fit_run(tmp_path / "run", config).metrics()]
    np.testing.assert_allclose(rates, 0.05 * np.array(factors), rtol=1e-6)


def test_smoothing_and_class_weights_reach_the_loss(shards: Path, tmp_path: Path) -> None:
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
    likely = fresh(config).predict(data["image"].astype(np.float32), verbose=0)[:, 0].astype(np.float64)
    target = 0.8 * data["label"] + 0.1
    losses = -(target * np.log(likely) + (1 - target) * np.log(1 - likely)) * np.where(
        data["label"] == 1, 3.0, 1.0
    )
    (metrics,) = run.metrics()
    assert metrics["loss"] == pytest.approx(losses.mean(), rel=1e-5)  # of 27 images, not of 32 places
    assert metrics["accuracy"] == pytest.approx(((likely > 0.5) == data["label"]).mean())


def test_what_is_learned_from_has_a_size_of_its_own(shards: Path, tmp_path: Path) -> None:
    """At a rate that moves nothing, the loss of training is that of images of 8x10, and that of validation of images of 12x12."""
    config = config_for(
        shards,
        model="tiny_pooled",
        epochs=1,
        augment={"size": [8, 10]},
        optimizer=SGD | {"learning_rate": 1e-30},
        label_smoothing=0.1,
    )
    run = fit_run(tmp_path / "run", config)
    whole, small = fresh(config), fresh(config_for(shards, model="tiny_pooled", data={"image_size": [8, 10]}))
    small.set_weights(whole.get_weights())
    losses = {}
    for split, model, smoothing in (("train", small, 0.1), ("validation", whole, 0.0)):
        data = read_rows(shards, split, config.data, range(27 if split == "train" else 10))
        images = tf.image.resize(data["image"], model.input_shape[1:3])
        likely = model.predict(images, verbose=0)[:, 0].astype(np.float64)
        target = (1 - smoothing) * data["label"] + smoothing / 2
        losses[split] = -(target * np.log(likely) + (1 - target) * np.log(1 - likely)).mean()
    (metrics,) = run.metrics()
    assert [metrics["loss"], metrics["val_loss"]] == pytest.approx(
        [losses["train"], losses["validation"]], rel=1e-5
    )
    assert abs(losses["train"] - losses["validation"]) > 1e-3
    assert keras.models.load_model(run.model_path).input_shape == (None, 12, 12, 3)


def test_precise_statistics_are_evaluated_and_saved_and_train_nothing(shards: Path, tmp_path: Path) -> None:
    settings = {"model": "tiny_normalized", "optimizer": SGD, "epochs": 2, "ema": 0.9}
    config = config_for(shards, precise_batch_norm=100, **settings)
    plain, precise = (
        fit_run(tmp_path / "plain", config_for(shards, **settings)),
        fit_run(tmp_path / "precise", config),
    )
    for expected, array in zip(read_checkpoint(plain, "epoch-0002"), read_checkpoint(precise, "epoch-0002"), strict=True):
        np.testing.assert_array_equal(array, expected)
    assert plain.metrics()[-1]["val_loss"] != precise.metrics()[-1]["val_loss"]
    model = keras.models.load_model(precise.model_path)
    batches = Batches(shards, "train", config.data, 8, seed=5)
    rows = [batches.rows_of(0, step) for step in range(3)]  # 24 of 27 images: the fourth batch is padded
    seen = np.stack([read_rows(shards, "train", config.data, part.tolist())["image"] for part in rows]) / 255
    first, hidden, second = (model.get_layer(name) for name in ("of_pixels", "hidden", "of_hidden"))
    np.testing.assert_allclose(first.moving_mean, seen.mean(axis=(0, 1, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(first.moving_variance, seen.var(axis=(0, 1, 2, 3)), rtol=1e-4)
    spread = np.sqrt(
        seen.var(axis=(1, 2, 3), keepdims=True) + first.epsilon
    )  # each batch is normalized by itself
    normal = (
        seen - seen.mean(axis=(1, 2, 3), keepdims=True)
    ) / spread * first.gamma.numpy() + first.beta.numpy()
    inner = normal.reshape(24, -1) @ hidden.kernel.numpy() + hidden.bias.numpy()
    np.testing.assert_allclose(
        second.moving_mean, inner.mean(axis=0), atol=2e-4
    )  # sums of 432 numbers in float32
    np.testing.assert_allclose(second.moving_variance, inner.var(axis=0), rtol=1e-4)
    data = read_rows(shards, "validation", config.data, range(10))
    likely = model.predict(data["image"].astype(np.float32), verbose=0)[:, 0]
    right = {epoch["val_accuracy"] for epoch in precise.metrics()}
    assert ((likely > 0.5) == data["label"]).mean() == pytest.approx(max(right))


@pytest.mark.parametrize(
    "settings",
    [
        {"model": "tiny_two_layers"},
        {"model": "tiny_normalized", "freeze": ["of_pixels", "of_hidden"]},
        {"global_batch": 32},
    ],
    ids=["nothing normalizes", "what normalizes is frozen", "no whole batch"],
)
def test_where_nothing_can_be_measured_statistics_stay(
    shards: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    settings = {"model": "tiny_normalized", "epochs": 1, **settings}
    plain = fit_run(tmp_path / "plain", config_for(shards, **settings))
    precise = fit_run(tmp_path / "precise", config_for(shards, precise_batch_norm=100, **settings))
    assert precise.metrics()[0]["val_loss"] == plain.metrics()[0]["val_loss"]


@pytest.mark.parametrize(("second", "variance"), [(201.3, 0.0), (202.1, 0.16)])
def test_the_variance_of_bright_pixels_is_not_lost_in_their_square(second: float, variance: float) -> None:
    """In float32 the square of 201.3 is known to 0.004, and a variance that fell below zero would make an evaluation of NaN."""
    image = keras.Input((4, 4, 1))
    layer = keras.layers.BatchNormalization()
    views = Views(*[keras.Model(image, layer(image))] * 2, lambda batch: batch, None)
    batch = {"image": tf.concat([tf.fill([4, 4, 4, 1], 201.3), tf.fill([4, 4, 4, 1], second)], 0)}
    batches = SimpleNamespace(rows=8, global_batch=8, epoch=lambda *_, **__: [batch], data_errors=nullcontext)
    with PreciseStatistics(views, tf.distribute.get_strategy(), batches, WorkerContext(), 8).swap_in():
        assert layer.moving_mean.numpy() == pytest.approx((201.3 + second) / 2)
        assert layer.moving_variance.numpy() == pytest.approx(variance, abs=1e-4)
        assert layer.moving_variance.numpy() >= 0
    assert (layer.moving_mean.numpy(), layer.moving_variance.numpy()) == (0, 1)


def test_the_gradient_is_as_short_as_asked_for(shards: Path, tmp_path: Path) -> None:
    """Four updates of rate 1 along gradients that are cut to a hundredth."""
    optimizer = {"name": "sgd", "learning_rate": 1.0, "clip_norm": 0.01}
    config = config_for(shards, epochs=1, augment=None, optimizer=optimizer)
    run = fit_run(tmp_path / "run", config)
    moved = [
        after - before
        for after, before in zip(read_checkpoint(run, "epoch-0001", "model"), fresh(config).get_weights(), strict=True)
    ]
    assert 0.02 < np.sqrt(sum((part**2).sum() for part in moved)) < 0.0401


def test_metrics_are_plain_json_with_speed(shards: Path, tmp_path: Path) -> None:
    run = fit_run(tmp_path / "run", config_for(shards, epochs=2, evaluate_every=5, **PLAIN))
    first, last = (json.loads(line) for line in run.metrics_path.read_text().splitlines())
    assert first["images_per_second"] == pytest.approx(27 / first["seconds"])
    assert 0 < first["input_wait"] < 1
    assert {
        "val_loss",
        "val_accuracy",
        "val_auc",
    } <= last.keys()  # the last epoch is evaluated, whatever is asked for
    assert not any(name.startswith("val_") for name in first)
    assert run.status()["timings"].keys() >= {
        "setup",
        "first call",
        "training",
        "waiting for input",
        "evaluation",
        "checkpoints",
    }


def test_the_average_is_what_is_evaluated_and_saved(shards: Path, tmp_path: Path) -> None:
    config = config_for(shards, epochs=1, ema=0.99, **PLAIN)
    run = fit_run(tmp_path / "run", config)
    average, raw = read_checkpoint(run, "epoch-0001", "training"), read_checkpoint(run, "epoch-0001", "model")
    model = keras.models.load_model(run.model_path)
    for expected, other, array in zip(average, raw, model.get_weights(), strict=True):
        np.testing.assert_array_equal(array, expected)
        assert not np.array_equal(other, expected)
    loop = Loop(config, run, WorkerContext())
    judged = {name: value for name, value in run.metrics()[0].items() if name.startswith("val_")}
    with loop.learner.use_evaluation_weights():
        assert loop.evaluation.compute_metrics() == judged
    assert loop.evaluation.compute_metrics()["val_loss"] != judged["val_loss"]


def test_the_model_of_the_best_epoch_is_kept(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.5, 0.9, 0.4, 0.6])
    monkeypatch.setattr(Evaluation, "metrics", lambda self: {"val_loss": 1.0, "val_accuracy": next(scores)})
    run = fit_run(tmp_path / "run", config_for(shards, epochs=4, keep_checkpoints=1, **PLAIN))
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["epoch-0002", "epoch-0004"]
    for expected, array in zip(
        read_checkpoint(run, "epoch-0002", "model"), keras.models.load_model(run.model_path).get_weights(), strict=True
    ):
        np.testing.assert_array_equal(array, expected)


def test_a_checkpoint_is_there_before_the_metrics_tell_of_it(shards: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, list[str], bool]] = []

    class Witness(Run):
        def write_metrics(self, epochs: Any) -> None:
            seen.append(
                (
                    len(epochs),
                    sorted(path.name for path in self.checkpoints.iterdir()),
                    self.model_path.exists(),
                )
            )
            super().write_metrics(epochs)

    config = config_for(shards, epochs=2, **PLAIN)
    create_run(tmp_path / "run", config)
    fit(config, Witness(tmp_path / "run"))
    assert seen == [(0, [], False), (1, ["epoch-0001"], True), (2, ["epoch-0001", "epoch-0002"], True)]


def test_a_run_that_stops_getting_better_ends(shards: Path, tmp_path: Path) -> None:
    stopping = {"metric": "loss", "patience": 2, "min_delta": 10.0}
    config = config_for(shards, epochs=9, early_stopping=stopping, **PLAIN)
    run = fit_run(tmp_path / "run", config)
    assert len(run.metrics()) == 3
    fit_run(run.path, config)  # has nothing left to do
    assert len(run.metrics()) == 3


def test_precision_is_that_of_the_hidden_layers(shards: Path, tmp_path: Path) -> None:
    plain, halves = (
        fit_run(tmp_path / precision, config_for(shards, epochs=1, precision=precision, **PLAIN))
        for precision in ("float32", "mixed_bfloat16")
    )
    model = keras.models.load_model(halves.model_path)
    assert (model.get_layer("hidden").compute_dtype, model.get_layer("logits").compute_dtype) == (
        "bfloat16",
        "float32",
    )
    assert {array.dtype for array in read_checkpoint(halves, "epoch-0001", "model")} == {np.dtype(np.float32)}
    for expected, array in zip(
        read_checkpoint(plain, "epoch-0001", "model"), read_checkpoint(halves, "epoch-0001", "model"), strict=True
    ):
        np.testing.assert_allclose(array, expected, atol=0.02)
        assert not np.array_equal(array, expected)
    assert keras.config.dtype_policy().name == "float32"


def test_the_seed_decides_the_first_weights(shards: Path) -> None:
    first, same, other = (
        fresh(config_for(shards, seed=seed)).get_layer("logits").kernel.numpy() for seed in (1, 1, 2)
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
def test_what_cannot_be_trained_is_refused(
    shards: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    data = noise_shards(tmp_path / "alone", rows=3, held_out=0) if "early_stopping" in changes else shards
    with pytest.raises(ConfigError, match=message):
        fit_run(tmp_path / "run", config_for(data, **changes))


def test_lost_checkpoints_do_not_restart_a_run_in_silence(shards: Path, tmp_path: Path) -> None:
    config = config_for(shards, epochs=1, **PLAIN)
    run = fit_run(tmp_path / "run", config)
    for path in run.checkpoints.iterdir():
        path.rename(tmp_path / path.name)
    before = run.metrics()
    with pytest.raises(TrainingError, match="checkpoints of the finished epochs"):
        fit(config, run)
    assert run.metrics() == before
