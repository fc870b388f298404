"""What commands without Ray print about a run whose names are attacks: visible characters, line by line."""

from __future__ import annotations

import csv
import unicodedata
from pathlib import Path

import pytest
from hostile_names import CLASSES, IDS, RUN_NAME, SHOWN_CONTROLS, make_hostile_run

from service.cli import main
from service.runs import Run

SHARDS = "SHARDS"  # stands for the shard set
RUN = "RUN"
MODEL = "MODEL"
OUT = "OUT"
INVISIBLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("hostile")
    return make_hostile_run(folder / RUN_NAME, folder / "shards")


def call(run: Run, out: Path, *words: str) -> int:
    places = {
        SHARDS: run.path.parent / "shards",
        RUN: run.path,
        MODEL: run.model_path,
        OUT: out / f"{RUN_NAME}.csv",
    }
    return main([str(places.get(word, word)) for word in words])


@pytest.mark.parametrize(
    "words",
    [
        ("shards", "info", SHARDS),
        ("preview", SHARDS, "--out", OUT),
        ("evaluate", "--model", MODEL, "--data", SHARDS),
        ("diagnose", RUN),
        pytest.param(("report", RUN), marks=pytest.mark.slow),
        pytest.param(("look", RUN, "--rows", "0,1", "--out", OUT), marks=pytest.mark.slow),
        pytest.param(("export", RUN, "--out", OUT), marks=pytest.mark.slow),
        ("look", MODEL, IDS[1], "--out", OUT),
        ("evaluate", "--model", CLASSES[1], "--data", SHARDS),
        ("train", "--local", "--preset", "demo", "--data", SHARDS, "--out", RUN, f"{IDS[1]}=1"),
        ("plan", "--data", CLASSES[1]),
    ],
    ids=lambda words: f"{words[0]}-{words[1]}"[:20].lower(),
)
def test_nothing_invisible_is_printed(
    run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    call(run, tmp_path, *words)
    printed = "".join(capfd.readouterr())
    assert printed
    assert "Traceback" not in printed
    invisible = {character for character in printed if unicodedata.category(character) in INVISIBLE}
    assert invisible <= {"\n"}


def test_the_names_are_shown(run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert call(run, tmp_path, "shards", "info", SHARDS) == 0
    assert SHOWN_CONTROLS in capfd.readouterr().out


def test_a_table_of_predictions_holds_no_formula(run: Run, tmp_path: Path) -> None:
    assert call(run, tmp_path, "predict", "--model", MODEL, "--data", SHARDS, "--out", OUT) == 0
    with (tmp_path / f"{RUN_NAME}.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert len(rows) == 1 + 2 * len(IDS)  # both splits
    assert not [cell for row in rows for cell in row if cell.startswith(("=", "+", "@", "\t", "\r"))]
