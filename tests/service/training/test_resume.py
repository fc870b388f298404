"""A run that is stopped or damaged, and resumed."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from training_samples import IMAGENET_RECIPE, config_for, fit_run, noise_shards, read_checkpoint

from pipelines.errors import ConfigError, TrainingError
from pipelines.input.batches import Batches
from pipelines.input.order import steps_per_epoch
from pipelines.storage import hash_file
from service.config import RunConfig
from service.milestones import list_milestones
from service.runs import Run
from service.training.learner import build_network
from service.training.loop import fit
from service.training.loss_scale import INITIAL_SCALE

SGD = {"name": "sgd", "learning_rate": 0.02, "momentum": 0.9}
STAGES = [
    {"epochs": 1, "freeze": "hidden"},
    {"epochs": 2, "learning_rate": 0.01, "schedule": {"name": "cosine"}},
]
PLAIN: dict[str, Any] = {"augment": None, "optimizer": SGD}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """19 training images, which are three steps an epoch, and 4 validation images."""
    return noise_shards(tmp_path_factory.mktemp("resume") / "shards", rows=19, held_out=4)


def list_names(run: Run) -> list[str]:
    return sorted(path.name for path in run.checkpoints.iterdir())


def assert_equal_runs(first: Run, second: Run, name: str) -> None:
    """Both ended with the same bits in a checkpoint, and the same metrics but for those of time."""
    for expected, array in zip(read_checkpoint(first, name), read_checkpoint(second, name), strict=True):
        np.testing.assert_array_equal(array, expected)
    timed = {"seconds", "images_per_second", "input_wait"}
    metrics_without_times = [
        [{k: v for k, v in metrics.items() if k not in timed} for metrics in run.metrics()]
        for run in (first, second)
    ]
    assert metrics_without_times[0] == metrics_without_times[1]
    assert hash_milestones(first) == hash_milestones(second)
    assert list_norms(first) == list_norms(second)
    assert [record["epoch"] for record in first.layers()] == list(range(1, len(first.metrics()) + 1))


def list_norms(run: Run) -> list[list[dict[str, float]]]:
    """Returns the norms of every epoch by layer, without names, because Keras' own count up in a process."""
    return [list(record["layers"].values()) for record in run.layers()]


def hash_milestones(run: Run) -> dict[str, str]:
    """Returns the digests of the weights of a few epochs that are kept for the report."""
    digests = {path.name: hash_file(path) for path in sorted(run.milestones.iterdir())}
    assert set(digests) == {f"epoch-{epoch:04d}.npz" for epoch in list_milestones(len(run.metrics()))}
    return digests


RECIPES: dict[str, dict[str, Any]] = {
    "everything": {
        "model": "tiny_forgetful",
        "optimizer": SGD,
        "schedule": {"name": "cosine", "warmup_steps": 2},
        "ema": 0.9,
        "augment": {"rotation": 20, "mixup": 0.4},
        "epochs": 2,
        "global_batch": 10,
    },
    "stages": {
        "augment": None,
        "ema": 0.9,
        "accumulate": 2,
        "precision": "mixed_float16",
        "stages": STAGES,
        "optimizer": SGD,
    },
    "mix": {"optimizer": SGD, "epochs": 2},
    "imagenet": IMAGENET_RECIPE | {"epochs": 2},
}


@pytest.mark.parametrize(
    "recipe",
    [
        "everything",
        pytest.param("stages", marks=pytest.mark.slow),
        "mix",
        pytest.param("imagenet", marks=pytest.mark.slow),
    ],
)
def test_a_run_that_is_resumed_at_every_step_ends_with_the_same_bits(
    shards: Path, tmp_path: Path, recipe: str
) -> None:
    settings = RECIPES[recipe]
    if recipe == "mix":
        other = noise_shards(tmp_path / "other", rows=11, held_out=0, shard_rows=2)
        mix = {str(shards): 1, str(other): 3}
        settings = settings | {"data": {"image_size": [12, 12], "window": 2, "mix": mix, "epoch_images": 19}}
    config = config_for(shards, steps_per_call=1, **settings)
    straight = fit_run(tmp_path / "straight", config)
    run = Run(tmp_path / "stopped")
    updates = config.epochs * -(-steps_per_epoch(19, config.global_batch) // config.accumulate)
    for _ in range(updates):
        assert len(run.metrics()) < config.epochs
        fit_run(run.path, config, checks=1)  # one update, then it is asked to stop
    assert_equal_runs(straight, run, f"epoch-{config.epochs:04d}")
    if recipe == "stages":  # the factor on the loss, and the updates it has lasted: those of the second stage
        assert [float(v) for v in read_checkpoint(run, "epoch-0003", "training")[-2:]] == [INITIAL_SCALE, 4.0]
    if recipe == "mix":
        sets = run.read_metadata().mix
        assert [(one["location"], one["first_row"], one["epoch_images"]) for one in sets] == [
            (str(shards), 0, 5),
            (str(other), 19, 14),
        ]


def test_stages_have_their_own_rates_and_trainable_layers(shards: Path, tmp_path: Path) -> None:
    config = config_for(shards, stages=STAGES, keep_checkpoints=3, **PLAIN)
    run = fit_run(tmp_path / "run", config)
    first = build_network(
        config, tf.distribute.get_strategy(), Batches(shards, "train", config.data, 8)
    ).get_weights()
    one, two = (read_checkpoint(run, f"epoch-{epoch:04d}", "model") for epoch in (1, 2))
    for n, frozen in enumerate([True, True, False, False]):
        assert np.array_equal(one[n], first[n]) == frozen
        assert not np.array_equal(two[n], one[n])
    # Iterations, learning rate, velocities
    assert [len(read_checkpoint(run, f"epoch-{epoch:04d}", "optimizer")) for epoch in (1, 2)] == [
        4,
        6,
    ]
    rates = [metrics["learning_rate"] for metrics in run.metrics()]
    np.testing.assert_allclose(
        rates, [0.02, *(0.005 * (1 + np.cos(np.pi * n / 6)) for n in (2, 5))], rtol=1e-6
    )


def test_a_run_starts_with_the_weights_of_a_file_and_resumes_without_it(shards: Path, tmp_path: Path) -> None:
    donor = fit_run(tmp_path / "donor", config_for(shards, epochs=1, **PLAIN))
    config = config_for(shards, epochs=2, seed=6, weights=str(donor.model_path), steps_per_call=1, **PLAIN)
    first = build_network(
        config, tf.distribute.get_strategy(), Batches(shards, "train", config.data, 8)
    ).get_weights()
    same_as_donor = [
        np.array_equal(w, other)
        for w, other in zip(first, read_checkpoint(donor, "epoch-0001", "model"), strict=True)
    ]
    assert same_as_donor == [True, True, False, False]  # all but the logits; their bias has learned
    straight = fit_run(tmp_path / "straight", config)
    fit_run(tmp_path / "stopped", config, checks=2)
    donor.model_path.unlink()
    assert_equal_runs(straight, fit_run(tmp_path / "stopped", config), "epoch-0002")


def test_a_damaged_checkpoint_is_skipped_with_a_notice(shards: Path, tmp_path: Path) -> None:
    config = config_for(shards, **PLAIN)
    straight = fit_run(tmp_path / "straight", config)
    run = fit_run(tmp_path / "run", config)
    state = run.checkpoints / "epoch-0003" / "state.npz"
    state.write_bytes(state.read_bytes()[:-1] + b"?")
    (run.checkpoints / ".tmp-left").mkdir()
    fit_run(run.path, config)
    assert_equal_runs(straight, run, "epoch-0003")
    assert [name for name in list_names(run) if name.startswith(".")] == []
    assert run.status()["notices"] == ["epoch-0003 is damaged: continuing from epoch-0002"]


def test_another_shard_set_or_model_is_refused(shards: Path, tmp_path: Path) -> None:
    config = config_for(shards, epochs=1, **PLAIN)
    run = fit_run(tmp_path / "run", config)
    before = (list_names(run), run.metrics())
    others = noise_shards(tmp_path / "others", rows=20, held_out=4)
    for changes, message in (
        ({"shards": str(others)}, "shard set the run began with"),
        ({"model": "linear"}, "model=linear"),
    ):
        with pytest.raises(ConfigError, match=message):
            fit(RunConfig.model_validate(config.model_dump() | changes), run)
    assert (list_names(run), run.metrics()) == before


def test_a_full_disk_leaves_the_checkpoints_intact(shards: Path, tmp_path: Path) -> None:
    config = config_for(shards, epochs=4, model="linear", augment=None)
    straight = fit_run(tmp_path / "straight", config)
    run = Run(tmp_path / "run")
    fit_run(run.path, RunConfig.model_validate(config.model_dump() | {"epochs": 2}))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (run.checkpoints / "epoch-0002" / "state.npz").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            fit(config, run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(run.metrics()) == 2
    assert [name for name in list_names(run) if name.startswith(".")] == []
    fit_run(run.path, config)
    assert_equal_runs(straight, run, "epoch-0004")


@pytest.fixture(scope="module")
def one_white(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """19 training images, of which the eleventh is white."""
    return noise_shards(tmp_path_factory.mktemp("white") / "shards", rows=19, held_out=0, white=10)


@pytest.mark.parametrize(("accumulate", "steps_per_call"), [(1, 1), (1, 3), (2, 1)])
def test_a_gradient_that_is_not_finite_is_reported_with_its_rows(
    one_white: Path, tmp_path: Path, accumulate: int, steps_per_call: int
) -> None:
    schedule = {"name": "step", "boundaries": [1]}
    config = config_for(
        one_white,
        model="tiny_fragile",
        schedule=schedule,
        accumulate=accumulate,
        steps_per_call=steps_per_call,
        seed=6,
        **PLAIN,
    )
    batches = Batches(one_white, "train", config.data, 8, seed=6)
    (step,) = [n for n in range(3) if 10 in batches.find_rows(1, n)]
    step -= step % accumulate
    rows = [
        row
        for n in range(step, min(step + accumulate, 3))
        for row in batches.find_rows(1, n).tolist()
        if row >= 0
    ]
    shown = ", ".join(map(str, rows[:8])) + (", ..." if len(rows) > 8 else "")
    with pytest.raises(TrainingError, match=rf"epoch=1 step={step} learning_rate=0.02 rows={shown}\."):
        fit_run(tmp_path / "run", config)
    assert not list(Run(tmp_path / "run").checkpoints.iterdir())


def test_updates_that_are_not_finite_can_be_skipped(one_white: Path, tmp_path: Path) -> None:
    config = config_for(one_white, model="tiny_fragile", on_nan="skip", steps_per_call=1, **PLAIN)
    # Stopped within the first epoch: the skipped updates are counted from there on
    fit_run(tmp_path / "run", config, checks=2)
    run = fit_run(tmp_path / "run", config)
    assert [metrics["skipped"] for metrics in run.metrics()] == [1, 1, 1]
    assert all(np.isfinite(array).all() for array in read_checkpoint(run, "epoch-0003"))
    assert int(read_checkpoint(run, "epoch-0003", "optimizer")[0]) == 6  # of nine updates


def test_a_run_that_skips_every_update_ends(one_white: Path, tmp_path: Path) -> None:
    config = config_for(one_white, model="tiny_fragile", on_nan="skip", global_batch=19, **PLAIN)
    with pytest.raises(TrainingError, match=r"epoch=1 skipped=1 \(every update\)"):
        fit_run(tmp_path / "run", config)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_run_that_diverges_stops_before_it_saves_anything(shards: Path, tmp_path: Path) -> None:
    config = config_for(
        shards, augment=None, model="linear", optimizer={"name": "sgd", "learning_rate": 1e38}
    )
    with pytest.raises(TrainingError, match=r"finite gradient.*epoch=1 step=1 learning_rate=1e\+38"):
        fit_run(tmp_path / "run", config)
    run = Run(tmp_path / "run")
    assert not run.model_path.exists()
    assert not list(run.checkpoints.iterdir())
