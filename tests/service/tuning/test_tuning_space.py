"""The search space: sampled hyperparameters, and spaces that are refused before anything starts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pipelines.errors import ConfigError
from service.cli import main, parse_arguments
from service.config import load_config, read_preset
from service.tuning.plan import PLAN, build_plan
from service.tuning.space import Search, parse_dimension

SETTINGS = {"model": "linear", "optimizer": {"name": "sgd", "learning_rate": 0.01}, "epochs": 3}


def search(space: Mapping[str, Any], seed: int = 0) -> Search:
    return Search(
        "test", SETTINGS, "/shards", tuple(parse_dimension(key, entry) for key, entry in space.items()), seed
    )


def test_the_first_trial_is_the_preset_and_the_others_vary_it() -> None:
    first, *others = search({"optimizer.learning_rate": {"loguniform": [1e-4, 1e-1]}}).configs(20)
    assert first.optimizer.learning_rate == 0.01
    rates = [config.optimizer.learning_rate for config in others]
    assert len(set(rates)) == 19
    assert all(config.optimizer.name == "sgd" and config.epochs == 3 for config in others)


def test_draws_depend_on_seed_and_trial_only() -> None:
    space = {"augment.rotation": {"uniform": [0, 40]}, "global_batch": {"int": [8, 64]}}
    one = search(space)
    other = search(space, seed=1)
    # A search with more trials therefore begins with the same ones
    assert [one.draw(n) for n in range(5)] == [search(space).draw(n) for n in range(5)]
    assert one.draw(1) != other.draw(1)
    assert one.draw(1) != one.draw(2)
    assert one.draw(2) != other.draw(1)


def test_each_setting_varies_independently() -> None:
    found = search({"accumulate": {"choice": [1, 2]}, "ema": {"choice": [0.8, 0.9]}})
    assert {tuple(found.draw(n).values()) for n in range(1, 30)} == {(1, 0.8), (1, 0.9), (2, 0.8), (2, 0.9)}


@pytest.mark.parametrize(
    ("entry", "median"),
    [
        ({"uniform": [1.0, 3.0]}, 2.0),
        ({"loguniform": [0.01, 100]}, 1.0),
        ({"int": [1, 4]}, 2.5),
        ({"choice": [1, 2, 3, 4]}, 2.5),
    ],
)
def test_ranges_are_filled_evenly_between_their_bounds(entry: dict[str, Any], median: float) -> None:
    drawn = [search({"x": entry}).draw(n)["x"] for n in range(1, 801)]
    ((first, *_, last),) = entry.values()
    assert first <= min(drawn) <= max(drawn) <= last
    below = float(np.mean(np.array(drawn) < median))
    assert below == pytest.approx(0.5, abs=0.06)
    if "int" in entry or "choice" in entry:
        assert {math.floor(value) for value in drawn} == {1, 2, 3, 4}
        assert all(isinstance(value, int) for value in drawn)


@pytest.mark.parametrize("bounds", [[0.123444, 0.123449], [0.123451, 0.123459]])  # 0.1234 and 0.1235, rounded
def test_rounding_does_not_leave_the_range(bounds: list[float]) -> None:
    found = search({"x": {"uniform": bounds}})
    assert all(bounds[0] <= found.draw(n)["x"] <= bounds[1] for n in range(1, 9))


def test_groups_and_their_settings_can_both_vary() -> None:
    space = {
        "optimizer": {"choice": [{"name": "adam"}, {"name": "sgd", "momentum": 0.9}]},
        "optimizer.learning_rate": {"uniform": [0.1, 0.2]},
    }
    found = {(c.optimizer.name, c.optimizer.momentum) for c in search(space).configs(20)[1:]}
    assert found == {("adam", 0.0), ("sgd", 0.9)}
    assert all(0.1 <= c.optimizer.learning_rate <= 0.2 for c in search(space).configs(20)[1:])


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"optimizer.learning_rat": {"uniform": [0.1, 0.2]}}, "use learning_rate"),
        ({"optimiser.learning_rate": {"uniform": [0.1, 0.2]}}, "use optimizer"),
        ({"global_batch": {"choice": [16, 0]}}, "global_batch=0"),
        ({"label_smoothing": {"uniform": [0.0, 1.5]}}, "label_smoothing=1.5"),
        ({"optimizer.name": {"choice": ["sgd", "adamm"]}}, "adamm"),
        ({"global_batch": {"uniform": [16, 32]}}, "global_batch"),
        (
            {"optimizer.name": {"choice": ["sgd", "adam"]}, "optimizer.momentum": {"choice": [0.5, 0.9]}},
            "momentum",
        ),
        ({"model": {"choise": ["linear"]}}, "use choice"),
        ({"model": "linear"}, "loguniform"),
        ({"model": {"choice": []}}, "a list of values"),
        ({"epochs": {"int": [3, 1]}}, "lower bound first"),
        ({"epochs": {"int": [3, 3]}}, "lower bound first"),
        ({"epochs": {"int": [1.5, 3]}}, "whole numbers"),
        ({"optimizer.learning_rate": {"loguniform": [0, 1]}}, "above 0"),
        ({"optimizer.learning_rate": {"uniform": [0.1, True]}}, "two numbers"),
        ({"shards": {"choice": ["a"]}}, "--data"),
    ],
)
def test_invalid_spaces_are_refused(space: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        search(space).configs(8)


@pytest.mark.parametrize("bound", [0, 1])
def test_a_bound_is_tried_even_if_no_trial_draws_it(bound: int) -> None:
    bounds = [0.1, 0.9]
    bounds[bound] = [-1e-9, 1.0][bound]
    with pytest.raises(ConfigError, match="label_smoothing"):
        search({"label_smoothing": {"uniform": bounds}}).configs(2)


def test_the_preset_that_a_search_writes_can_be_read(tmp_path: Path) -> None:
    found = search(
        {"augment": {"choice": [{"rotation": 5.0}]}, "optimizer.learning_rate": {"loguniform": [1e-4, 2e-4]}}
    )
    values = found.draw(3)
    path = tmp_path / "best.yaml"
    path.write_text("# Found.\n" + yaml.safe_dump(found.settings_with(values), sort_keys=False))
    assert load_config(str(path), "/shards").model_copy(update={"preset": "test"}) == found.config(values)


def test_a_search_names_user_code_by_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "space.yaml").write_text("seed: {int: [1, 9]}")
    words = "tune demo model=nets.py:build --space space.yaml --trials 2 --data shards --out search"
    assert build_plan(parse_arguments(words.split())).settings["model"] == f"{tmp_path}/nets.py:build"


def test_a_plan_from_the_command_line_and_its_continuation(tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    out = str(tmp_path / "search")
    space.write_text("optimizer.learning_rate: {loguniform: [1e-4, 1e-2]}\n")
    required = f"demo --space {space} --trials 4 --data /s"
    optional = (
        "--seed 3 --grace 2 --reduction 2.5 --cpus-per-trial 5 --gpus-per-trial 0 --restarts 1 epochs=2"
    )
    plan = build_plan(parse_arguments(["tune", *required.split(), *optional.split(), "--out", out]))
    chosen = {"seed": 3, "grace": 2, "reduction": 2.5, "cpus": 5, "gpus": 0, "restarts": 1}
    assert plan.model_dump() == {
        "preset": "demo",
        "settings": read_preset("demo")[1] | {"epochs": 2},
        "shards": "/s",
        "space": {"optimizer.learning_rate": {"loguniform": [0.0001, 0.01]}},
        "trials": 4,
        **chosen,
    }
    assert plan.build_search().seed == 3
    Path(out).mkdir()
    (Path(out) / PLAN).write_text(yaml.safe_dump(plan.model_dump(mode="json")))
    assert build_plan(parse_arguments(["tune", "--resume", "--out", out])) == plan
    resumed = build_plan(
        parse_arguments(["tune", "--resume", "--out", out, "--trials", "9", "--restarts", "7"])
    )
    assert resumed == plan.model_copy(update={"trials": 9, "restarts": 7})
    (Path(out) / PLAN).write_text("{")
    with pytest.raises(ConfigError, match=f"a YAML file. Received: search={out}"):
        build_plan(parse_arguments(["tune", "--resume", "--out", out]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--trials", "2", "--data", "x"], "no space"),
        (["demo", "--space", "SPACE", "--trials", "2"], "no data"),
        (["demo", "--space", "gone.yaml", "--trials", "2", "--data", "x"], "gone.yaml"),
        (["demoo", "--space", "SPACE", "--trials", "2", "--data", "x"], "use demo"),
        (["demo", "--space", "SPACE", "--trials", "0", "--data", "x"], "trials"),
        (["--resume"], "the directory of a search"),
        (["--resume", "--seed", "3"], "--resume with --out alone"),
        (["demo", "--resume"], "--resume with --out alone"),
    ],
)
def test_options_that_exclude_each_other_or_are_missing(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = tmp_path / "space.yaml"
    space.write_text("epochs: {int: [1, 2]}\n")
    replaced = [str(space) if argument == "SPACE" else argument for argument in arguments]
    assert main(["tune", *replaced, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
