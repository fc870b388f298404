"""Trainings of runs on a store: the same weights as on local disk, from any host."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from stores import Bucket
from training_samples import config_for, noise_shards, read_checkpoint

from pipelines.errors import ConfigError
from service.runs import Run
from service.training import launch
from service.tuning.driver import tune
from service.tuning.plan import Plan

pytestmark = pytest.mark.heavy

SETTINGS = {"epochs": 2, "optimizer": {"name": "sgd", "learning_rate": 0.05, "momentum": 0.9}, "ema": 0.9}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return noise_shards(tmp_path_factory.mktemp("store") / "shards")


def test_a_run_that_continues_on_another_host_has_the_bits_of_one_on_local_disk(
    shards: Path, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"{bucket.url}/runs/first"
    monkeypatch.setenv("GLASSBOX_CACHE", str(tmp_path / "one"))
    first = launch.train(config_for(shards, **SETTINGS), uri, local=True)
    assert first.path.is_relative_to(tmp_path / "one")
    config = yaml.safe_load(bucket.get("runs/first/config.yaml"))
    bucket.put("runs/first/config.yaml", yaml.safe_dump(config | {"epochs": 4}).encode())

    monkeypatch.setenv("GLASSBOX_CACHE", str(tmp_path / "two"))
    second = launch.resume(uri, local=True)
    assert second.path.is_relative_to(tmp_path / "two")
    expected = launch.train(config_for(shards, **SETTINGS | {"epochs": 4}), tmp_path / "local", local=True)
    bucket.download_folder("runs/first", tmp_path / "copy")
    for run in (second, Run(tmp_path / "copy")):
        for array, other in zip(
            read_checkpoint(run, "epoch-0004"), read_checkpoint(expected, "epoch-0004"), strict=True
        ):
            np.testing.assert_array_equal(array, other)
        assert [epoch["loss"] for epoch in run.metrics()] == [epoch["loss"] for epoch in expected.metrics()]
        assert run.status()["state"] == "finished"
        assert run.has_model()


def test_a_mistake_in_the_configuration_leaves_no_run_on_the_store(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLASSBOX_CACHE", str(tmp_path / "cache"))
    shards = noise_shards(tmp_path / "shards", held_out=0)
    config = config_for(shards, early_stopping={"patience": 1, "metric": "val_accuracy"})
    with pytest.raises(ConfigError, match="validation"):
        launch.train(config, f"{bucket.url}/runs/first", local=True)
    assert bucket.list_keys() in ([], ["runs/first/.lease"])
    launch.train(config_for(shards, epochs=1), f"{bucket.url}/runs/first", local=True)


def test_a_search_on_a_store_is_refused(shards: Path) -> None:
    plan = Plan(preset="demo", settings={}, shards=str(shards), space={}, trials=1)
    with pytest.raises(ConfigError, match="a local folder, or one that all nodes share, for a search"):
        tune(plan, "s3://bucket/search")
