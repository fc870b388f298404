"""The command lines in the documents fit the command line of glassbox.

`e2e/test_readme_commands.py` runs them; these tests take milliseconds, and cover those that cannot be run.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.cli import parse_arguments

ROOT = Path(__file__).resolve().parents[1]
SHELL_BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.M | re.S)
SEPARATORS = re.compile(r"[;|&()<>]+")
DOCUMENTS = sorted(
    str(path.relative_to(ROOT))
    for folder in ("pipelines", "service", "k8s", "tests")
    for path in (ROOT / folder).rglob("*.md")
)


def find_commands(text: str) -> Iterator[list[str]]:
    """Yields the arguments of every `glassbox` in the shell blocks of a document."""
    for block in SHELL_BLOCK.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            words = list(lexer)
            for place, word in enumerate(words):
                if word == "glassbox" and begins_command(words[:place]):
                    yield take_arguments(words[place + 1 :])


def begins_command(words: list[str]) -> bool:
    """Tells whether the next word is the name of a program: only assignments of variables may precede it."""
    return not words or bool(SEPARATORS.fullmatch(words[-1])) or "=" in words[-1]


def take_arguments(words: list[str]) -> list[str]:
    """Takes the words up to the end of a command or its first redirection."""
    arguments = []
    for word in words:
        if SEPARATORS.fullmatch(word):
            break
        arguments.append(word)
    return arguments


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", *DOCUMENTS])
def test_commands_of_a_document_can_be_parsed(document: str, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in find_commands((ROOT / document).read_text()):
        try:
            parse_arguments(arguments)
        except SystemExit as stop:
            if stop.code:  # not of `--help` or `--version`
                pytest.fail(f"glassbox {shlex.join(arguments)}\n{capsys.readouterr().err}")


def test_commands_are_found() -> None:
    text = """Words `glassbox no`.
```sh
cd x && glassbox train --out "a b" \\
  epochs=1 > log  # glassbox comment
A=1 glassbox report 'x;y' | head
kubectl create namespace glassbox --no
```
"""
    assert list(find_commands(text)) == [["train", "--out", "a b", "epochs=1"], ["report", "x;y"]]


def test_the_readme_has_commands() -> None:
    assert len(list(find_commands((ROOT / "README.md").read_text()))) >= 8
