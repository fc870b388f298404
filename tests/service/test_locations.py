"""Every option that takes a location refuses unknown schemes before anything starts."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.cli import build_parser, main

# Options whose values are no locations, by their destination
OTHER_OPTIONS = {
    "augment",  # of preview: key=value
    "check",
    "columns",
    "encoding",
    "format",
    "head",
    "levels",
    "on_nan",
    "overrides",  # tested separately
    "sheets",
    "split",
    "splits",
    "tta",
    "workers",  # of train: N or MIN:MAX
}
CLASS_NAMES = "predict"  # command whose --classes are names, not a file
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
        if not (command == CLASS_NAMES and action.dest == "classes")
    ]


LOCATION_OPTIONS = list_location_options()


def build_arguments(command: str, dest: str, value: str) -> list[str]:
    """Returns a command line that sets one option, and all that are required to plain names."""
    parser = dict(find_commands(build_parser()))[command]
    arguments = command.split()
    for action in parser._actions:
        is_needed = action.required and not isinstance(action, argparse._HelpAction)
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
