"""Every option that takes a location refuses unknown schemes before anything starts."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import pytest
from stores import Bucket

from service.cli import build_parser, main
from service.commands.locations import SOURCE_KINDS, check_locations

# Options whose values are no locations, by their destination
OTHER_OPTIONS = {
    "augment",  # of preview: key=value
    "check",
    "columns",
    "embedding",
    "encoding",
    "format",
    "fit",
    "gpu",
    "head",
    "host",  # of serve
    "k8s",  # of submit: manifests on a disk, or - for standard input
    "label",
    "levels",
    "name",  # of submit: the run
    "on_nan",
    "overrides",  # tested separately
    "queue",
    "rows",
    "sheets",
    "size",
    "split",
    "splits",
    "storage",  # of plan: a kind of store
    "tta",
    "workers",  # of train: N or MIN:MAX
}
CLASS_NAMES = ("export", "look", "predict")  # commands whose --classes are names, not a file
UNKNOWN = "ftp://host/path/name"


def find_commands(
    parser: argparse.ArgumentParser, names: tuple[str, ...] = ()
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Yields the name of every command with its parser."""
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not groups:
        yield " ".join(names), parser
    for group in groups:
        for name, inner in group.choices.items():
            yield from find_commands(inner, (*names, name))


def takes_text(action: argparse.Action) -> bool:
    is_flag = action.nargs == 0
    return not is_flag and action.type is None and action.choices is None


def list_location_options() -> list[tuple[str, str]]:
    """Returns command and destination of every option that takes a path or a URI."""
    return [
        (command, action.dest)
        for command, parser in find_commands(build_parser())
        for action in parser._actions
        if takes_text(action) and action.dest not in OTHER_OPTIONS
        if not (command in CLASS_NAMES and action.dest == "classes")
    ]


LOCATION_OPTIONS = list_location_options()


def build_arguments(command: str, dest: str, value: str) -> list[str]:
    """Returns a command line that sets one option, and all that are required to plain names."""
    parser = dict(find_commands(build_parser()))[command]
    arguments = command.split()
    for action in parser._actions:
        is_needed = action.required and action.nargs != "*"  # which argparse calls required
        if action.dest != dest and not is_needed:
            continue
        text = value if action.dest == dest else "plain"
        if action.option_strings:
            arguments.append(f"{action.option_strings[0]}={text}")
        else:
            arguments.append(text)
    return arguments


@pytest.mark.parametrize(("command", "dest"), LOCATION_OPTIONS)
def test_an_unknown_scheme_is_refused_in_one_sentence(
    command: str,
    dest: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(build_arguments(command, dest, UNKNOWN)) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("glassbox: Expected a path or an address that starts with s3://")
    assert output.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.e2e
def test_an_object_that_does_not_exist_is_an_error_and_never_a_local_folder(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GLASSBOX_CACHE", str(tmp_path / "cache"))
    named = []
    for command, dest in LOCATION_OPTIONS:
        if command.startswith("cache"):  # needs no shard set
            continue
        if (command, dest) == ("report", "all"):  # a prefix without objects holds no runs
            continue
        code = main(build_arguments(command, dest, f"{bucket.url}/none.yaml"))
        error = capsys.readouterr().err
        assert code in (2, 3), (command, dest, error)
        assert error.startswith("glassbox: Expected "), (command, dest)
        assert not list(tmp_path.glob("s3:*")), (command, dest)
        if f"{bucket.url}/none.yaml" in error:
            named.append(dest)
    inputs = {dest for _, dest in LOCATION_OPTIONS} - {"out", "custom_objects", "location", "all"}
    assert inputs - set(named) <= {"images", "samples", "space"}  # of which others are missing first
    assert [path.name for path in tmp_path.iterdir()] in ([], ["cache"])


@pytest.mark.parametrize("option", ["model", "weights", "custom_objects"])
@pytest.mark.parametrize("command", ["train", "tune", "preview"])
def test_an_unknown_scheme_in_a_setting_is_refused(
    command: str,
    option: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    options = {
        "train": ["--preset=demo", "--data=plain", "--out=plain"],
        "tune": ["demo", "--space=plain", "--trials=1", "--data=plain", "--out=plain"],
        "preview": ["plain"],
    }
    assert main([command, *options[command], f"{option}={UNKNOWN}"]) == 2
    assert "scheme=ftp" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", SOURCE_KINDS)
def test_an_unknown_scheme_in_a_source_is_refused(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shards", "build", f"{kind}:s4://bucket/photos", "plain"]) == 2
    assert "scheme=s4" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "dest"), [option for option in LOCATION_OPTIONS if option[1] in ("out", "custom_objects")]
)
def test_an_output_on_the_web_and_code_on_a_store_are_refused(
    command: str,
    dest: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(build_arguments(command, dest, "https://host/folder/name.py")) == 2
    expected = "an output that can be written" if dest == "out" else "user code on a disk"
    assert capsys.readouterr().err.startswith(f"glassbox: Expected {expected}")
    assert list(tmp_path.iterdir()) == []


def test_a_file_uri_becomes_a_path_and_other_texts_stay_as_they_are() -> None:
    texts = {
        "file:///data/x": "/data/x",
        "csv:file:///data/x%20y.csv": "csv:/data/x y.csv",
        "model=file:///m.keras": "model=/m.keras",
        "s3://bucket/x": "s3://bucket/x",
        "folder:gs://bucket/x": "folder:gs://bucket/x",
        "own.py:Source:hdfs://x": "own.py:Source:hdfs://x",  # its own business
        "https://host/x.zip?key=1#sha256=0": "https://host/x.zip?key=1#sha256=0",
        "epochs=5": "epochs=5",
    }
    options = argparse.Namespace(texts=list(texts), one="file:///data/x", number=3, none=None)
    check_locations(options)
    assert options.texts == list(texts.values())
    assert (options.one, options.number, options.none) == ("/data/x", 3, None)


def test_every_text_option_is_known_to_be_a_location_or_not() -> None:
    """A new option has to be added to `OTHER_OPTIONS`, unless it is a path."""
    assert {dest for _, dest in LOCATION_OPTIONS} == {
        "all",
        "classes",
        "custom_objects",
        "data",
        "directories",
        "directory",
        "images",
        "location",
        "model",
        "out",
        "preset",
        "samples",
        "shards",
        "source",
        "space",
        "target",
    }
