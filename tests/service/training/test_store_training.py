"""Training from a shard set on a store gives the weights of the local set, and shows what it has read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from object_site import ObjectSite
from training_samples import config_for, create_run, fit_run, noise_shards, read_checkpoint

from pipelines.errors import ConfigError
from pipelines.input.footprint import measure_training
from pipelines.remote import claims
from pipelines.remote.needs import count_bytes
from pipelines.spec import DataSpec
from service.training import launch, loop, meter
from service.training.strategy import SINGLE_WORKER
from service.training.telemetry import GAUGES


def test_half_of_the_set_in_the_cache_gives_the_same_weights_also_after_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLASSBOX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(meter, "PUBLISH_SECONDS", 0.0)
    received: list[dict[str, float]] = []
    monkeypatch.setattr(loop, "create_gauges", lambda config, run: (received.append,))
    folder = noise_shards(tmp_path / "shards", rows=60, shard_rows=4)  # 15 shards, and 3 for validation
    size = sum(path.stat().st_size for path in folder.glob("*-*"))
    indices = sum(path.stat().st_size for path in folder.glob("*.*.arrow"))
    data = {"image_size": [12, 12], "cache": "none", "window": 2}

    with ObjectSite().serve() as site:
        site.objects |= {path.name: path.read_bytes() for path in folder.iterdir()}
        remote = config_for(site.location, data=data | {"cache_gb": (size / 2 + indices) / 1e9})
        run = fit_run(tmp_path / "remote", remote, checks=3)
        assert run.metrics() == []
        run = fit_run(tmp_path / "remote", remote)
    local = fit_run(tmp_path / "local", config_for(folder, data=data))

    for ours, theirs in zip(
        read_checkpoint(run, "epoch-0003"), read_checkpoint(local, "epoch-0003"), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    assert "data.cache_gb" in run.status()["caches"]["shards"]
    store = run.status()["store"]
    assert size * 0.3 < store["store_fetched_bytes"] < 3 * size
    assert 0 < store["store_hit_rate"] < 1
    assert store["store_wait_seconds"] > 0
    at_once = {name for name in GAUGES if not name.startswith("val_")}  # those after the first evaluation
    assert all(progress.keys() >= at_once for progress in received if "store_hit_rate" in progress)
    assert set().union(*received) >= GAUGES.keys()
    assert any(progress.get("store_hit_rate") for progress in received)
    assert local.status()["store"] is None


def test_a_cache_below_two_windows_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLASSBOX_CACHE", str(tmp_path / "cache"))
    folder = noise_shards(tmp_path / "shards", shard_rows=3)
    with ObjectSite().serve() as site:
        site.objects |= {path.name: path.read_bytes() for path in folder.iterdir()}
        data = {"image_size": [12, 12], "cache": "none", "cache_gb": 1e-5}
        config = config_for(site.location, data=data)
        message = r"at least [\d.]+ GB: two windows .*data\.window=all"
        for is_local in (False, True):
            with pytest.raises(ConfigError, match=message):
                launch.train(config, tmp_path / "run", local=is_local)
        assert not (tmp_path / "run").exists()
        with pytest.raises(ConfigError, match=message):  # a worker with a smaller disk than the driver
            loop.Loop(config, create_run(tmp_path / "run", config), SINGLE_WORKER)


def test_a_training_claims_its_part_of_the_cache_until_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLASSBOX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(claims, "WAIT_SECONDS", 0.0)
    folder = noise_shards(tmp_path / "shards", rows=60, shard_rows=4)
    with ObjectSite().serve() as site:
        site.objects |= {path.name: path.read_bytes() for path in folder.iterdir()}
        data = DataSpec(image_size=(12, 12), cache="none", window=2)
        needs = measure_training(site.location, data, 8, 5, 1)

        def open_loop(name: str, size: int) -> loop.Loop:
            settings = data.model_dump() | {"cache_gb": size / 1e9}
            config = config_for(site.location, data=settings)
            return loop.Loop(config, create_run(tmp_path / name, config), SINGLE_WORKER)

        first = open_loop("first", count_bytes(needs))
        with pytest.raises(ConfigError, match=r"for all trainings on this host.*next to process"):
            open_loop("second", count_bytes(needs))
        first.close()
        open_loop("third", count_bytes(needs)).close()
        first = open_loop("fourth", 2 * count_bytes(needs))
        second = open_loop("fifth", 2 * count_bytes(needs))
        assert any("the shard cache is shared with" in note for note in second.run.status()["notices"])
        second.close()
        first.close()
