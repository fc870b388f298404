"""Code from outside the package: files, modules and entry points, and the errors they can cause."""

from __future__ import annotations

import pickle
import shutil
import sys
from pathlib import Path

import pytest
from package_samples import write_package

from pipelines.errors import ConfigError
from pipelines.plugins import is_reference, load_reference, reference_file
from pipelines.registry import Registry

ANIMALS = {"animals": "def cat(): return 'meow'"}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory on the import path; modules that a test imports from it are forgotten afterwards."""
    directory = tmp_path / "site"
    directory.mkdir()
    monkeypatch.syspath_prepend(str(directory))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    return directory


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.py:build", True),
        ("~/my models/model.py:Nets.build", True),
        ("package.module:build", True),
        ("json:loads", True),  # a module without a dot that is installed
        ("folder:photos", False),
        ("synthetic:evidence", False),
        ("cnn", False),
        ("model.py", False),
        ("model.py:", False),
        ("model.py:two words", False),
        ("https://host/model.py:build", False),
        ("https://host.name/file#sha256=00", False),
        ("package.module:build:rest", False),
        ("", False),
    ],
)
def test_references_are_distinguished_from_names(name: str, expected: bool) -> None:
    assert is_reference(name) is expected


def test_the_file_of_a_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert reference_file("dir/model.py:build") == Path("dir/model.py")
    assert reference_file("~/model.py:build") == Path("/home/somebody/model.py")
    assert reference_file("package.module:build") is None


def test_a_file_is_imported_once_and_again_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "my-model.py"
    path.write_text("class Net:\n    size = 1\n    def build(): return 2\n")
    net = load_reference(f"{path}:Net", "model")
    assert net.size == 1
    assert load_reference(f"{path}:Net.build", "model")() == 2
    assert load_reference(f"{path}:Net", "model") is net
    assert isinstance(pickle.loads(pickle.dumps(net())), net)

    (tmp_path / "code").mkdir()
    copy = Path(shutil.copy(path, tmp_path / "code"))
    assert load_reference(f"{copy}:Net", "model") is net  # what one run pickled, another can read

    path.write_text("class Net:\n    size = 3\n")
    assert load_reference(f"{path}:Net", "model").size == 3


def test_a_file_may_define_dataclasses(tmp_path: Path) -> None:
    path = tmp_path / "shapes.py"
    path.write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "@dataclass\nclass Shape:\n    side: int\n"
    )
    assert load_reference(f"{path}:Shape", "model")(3).side == 3


@pytest.mark.parametrize(
    ("code", "attribute", "message"),
    [
        (None, "build", r"a Python file\. Received: model=\S+\.py:build \(no such file or directory\)"),
        ("def build(): ...", "biuld", r"a name that \S+\.py defines\..* model=\S+\. Fix: use build\."),
        ("import json\nfrom json import loads", "build", r"Fix: define build in \S+model\.py\."),
        ("class Net: ...", "Net.build", r"Fix: define build in \S+model\.py\."),
        ("\n\n1 / 0", "build", r"model\.py:build: ZeroDivisionError: division by zero \(line 3\)\. Fix: run"),
        ("def build(:", "build", r"model\.py:build: SyntaxError: invalid syntax \(line 1\)"),
        ("import no_such_module", "build", r"ModuleNotFoundError: No module named 'no_such_module' \(line"),
        ("raise SystemExit(2)", "build", r"model\.py:build: SystemExit: 2 \(line 1\)"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used(tmp_path: Path, code: str | None, attribute: str, message: str) -> None:
    path = tmp_path / "model.py"
    if code is not None:
        path.write_text(code)
    with pytest.raises(ConfigError, match=message):
        load_reference(f"{path}:{attribute}", "model")


def test_a_file_that_failed_is_executed_again(tmp_path: Path) -> None:
    helper = tmp_path / "ready"
    path = tmp_path / "model.py"
    path.write_text(f"value = open({str(helper)!r}).read()")
    with pytest.raises(ConfigError, match="FileNotFoundError"):
        load_reference(f"{path}:value", "model")
    helper.write_text("now")
    assert load_reference(f"{path}:value", "model") == "now"


def test_modules(site: Path) -> None:
    write_package(site, "zoo", ANIMALS)
    assert load_reference("zoo.animals:cat", "animal")() == "meow"
    with pytest.raises(
        ConfigError, match=r"a name that zoo\.animals defines\. .*animal=zoo\.animals:cta.*use cat"
    ):
        load_reference("zoo.animals:cta", "animal")
    missing = (
        r"No module named 'zoo\.fish'\. Fix: install the package in this environment, or write file\.py:NAME"
    )
    with pytest.raises(ConfigError, match=missing):
        load_reference("zoo.fish:cod", "animal")
    (site / "zoo" / "birds.py").write_text("import no_such_module")
    with pytest.raises(ConfigError, match=r"a module zoo\.birds .*'no_such_module'\. Fix: run `python -c"):
        load_reference("zoo.birds:owl", "animal")


def test_a_registry_finds_entry_points_and_references(site: Path) -> None:
    entry_points = "[glassbox.animals]\ncat = zoo.animals:cat\ndog = zoo.animals:dog\nowl = zoo.birds:owl\n"
    write_package(site, "zoo", ANIMALS, entry_points)
    animals = Registry("animal", group="glassbox.animals")
    animals.register("cow")("moo")
    assert animals.names() == ("cat", "cow", "dog", "owl")
    assert animals.get("cat")() == "meow"
    assert animals.get("zoo.animals:cat")() == "meow"
    with pytest.raises(ConfigError, match=r"animal=dog \(entry point zoo\.animals:dog\)\. Fix: use cat\."):
        animals.get("dog")
    with pytest.raises(ConfigError, match=r"animal=owl \(entry point zoo\.birds:owl\): ModuleNotFoundError"):
        animals.get("owl")
    with pytest.raises(ConfigError, match=r"animal=caat\. Fix: use cat, or file\.py:NAME for a"):
        animals.get("caat")


def test_own_names_come_before_those_of_packages(site: Path) -> None:
    write_package(site, "zoo", ANIMALS, "[glassbox.animals]\ncat = zoo.animals:cat\n")
    animals = Registry("animal", group="glassbox.animals")
    animals.register("cat")("purr")
    assert animals.get("cat") == "purr"


def test_two_packages_with_one_name_are_refused(site: Path) -> None:
    for package in ("zoo", "farm"):
        write_package(site, package, ANIMALS, f"[glassbox.animals]\ncat = {package}.animals:cat\n")
    with pytest.raises(
        ConfigError, match=r"one package that provides the animal.*animal=cat \(\S+ and \S+\)"
    ):
        Registry("animal", group="glassbox.animals").get("cat")


def test_a_registry_without_a_group_knows_its_own_names_only() -> None:
    animals = Registry("animal")
    animals.register("cat")(1)
    with pytest.raises(ConfigError, match=r"animal=json:loads\. Fix: use cat\."):
        animals.get("json:loads")
