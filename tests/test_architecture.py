"""The rules of the design that code can check: import directions, owners of file formats, light modules."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from heavy_imports import HEAVY
from import_graph import ROOT, Module, build_graph, find_cycles, format_graph, load_modules

MODULES = load_modules()
GRAPH = build_graph(MODULES)

# No module of the first package imports the second, directly.
FORBIDDEN = [
    ("pipelines", "service"),
    ("pipelines.sources", "pipelines.shards"),
    ("pipelines.sources", "pipelines.input"),
    ("pipelines.shards", "pipelines.input"),
    ("service.report", "service.training"),
    ("service.report.analysis", "service.report.drawing"),
    ("service.report.analysis", "service.report.sections"),
    ("service.report.drawing", "service.report.analysis"),
    ("service.report.sections", "service.report.subject"),
    ("service.report.sections", "service.report.job"),
    ("service.report.sections", "service.report.pages"),
    ("service.report", "pipelines.sources"),
    ("service.training", "service.report"),
    ("service.training", "pipelines.sources"),
]

# Files of a run directory, and the attributes of `Run` that are their paths
RUN_FILES = ("config.yaml", "metrics.jsonl", "status.json", "checkpoint.json", "state.npz", "epoch-")
RUN_PATHS = ("config_path", "metrics_path", "status_path", "checkpoints", "milestones")
RUN_OWNERS = (
    "service.runs",
    "service.checkpoint",
    "service.checkpoint_record",
    "service.milestones",
    "service.mirror.fetch",
    "service.mirror.folder",
    "service.mirror.plan",
)

# What opens shards: pyarrow's IPC files, memory maps, TFRecord files, and the manifest by name
SHARD_WORDS = ("memory_map", "RecordBatchFileReader", "open_file", "open_stream", "TFRecordDataset")
SHARD_OWNER = "pipelines.shards"
LISTINGS = "pipelines.sources.listing"  # has Arrow files of its own, which are temporary


def is_inside(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


@pytest.mark.parametrize(("importer", "imported"), FORBIDDEN, ids=lambda name: str(name))
def test_data_flows_one_way(importer: str, imported: str) -> None:
    wrong = [
        f"{name} imports {target}"
        for name, targets in GRAPH.items()
        for target in targets
        if is_inside(name, importer) and is_inside(target, imported)
    ]
    assert wrong == []


def test_no_import_is_circular() -> None:
    """Imports inside functions count, those for type checkers alone do not."""
    assert find_cycles(GRAPH) == []


def write_package(folder: Path, **sources: str) -> dict[str, Module]:
    """Writes a package `planted` of some modules and reads it as `import_graph` does."""
    (folder / "planted").mkdir()
    for name, source in sources.items():
        (folder / "planted" / f"{name}.py").write_text(source)
    return load_modules(folder, ("planted",))


def test_a_cycle_is_found_wherever_the_import_is(tmp_path: Path) -> None:
    modules = write_package(
        tmp_path,
        __init__="",
        one="from planted.two import x",
        two="def f():\n    import planted.three",
        three="from planted import one",
        four="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from planted import five",
        five="from planted import four",
    )
    assert find_cycles(build_graph(modules)) == [["planted.one", "planted.three", "planted.two"]]
    assert find_cycles(build_graph(modules, with_deferred=False)) == []
    assert "planted.one <-> planted.three <-> planted.two" in format_graph(modules)


def test_a_package_that_imports_its_modules_is_in_a_cycle_with_those_that_import_it(tmp_path: Path) -> None:
    modules = write_package(
        tmp_path, __init__="from planted import one", one="from planted import x", two="import planted.one"
    )
    assert find_cycles(build_graph(modules)) == [["planted", "planted.one"]]


def find_strings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yields line and text of the string literals of a file.

    Docstrings do not count, nor do arguments of `check`, which names the file in its errors.
    """
    ignored: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr):
            ignored.add(node.value)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "check":
            ignored.update(node.args)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in ignored:
            yield node.lineno, node.value


def find_uses(tree: ast.AST, names: tuple[str, ...], owners: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """Yields line and text of the expressions that use the contents of what some path attributes point to.

    Testing whether the path exists and printing it are no uses, nor is passing it to the owners' functions.
    """
    allowed = {"str"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in owners:
            allowed |= {alias.name for alias in node.names}
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or node.attr not in names:
            continue
        parent = parents[node]
        is_method = isinstance(parent, ast.Attribute) and parent.attr not in ("is_file", "name")
        is_joined = isinstance(parent, ast.BinOp)
        is_passed = isinstance(parent, ast.Call) and ast.unparse(parent.func) not in allowed
        if is_method or is_joined or is_passed:
            yield node.lineno, ast.unparse(parent)


def find_run_directory_uses(source: str) -> list[str]:
    """Finds where code knows the contents of a run directory: the names of its files, or what is in them."""
    tree = ast.parse(source)
    named = [
        (line, text)
        for line, text in find_strings(tree)
        if any(text.endswith(name) or text.startswith(name) for name in RUN_FILES) and " " not in text
    ]
    return [f"line {line}: {text}" for line, text in [*named, *find_uses(tree, RUN_PATHS, RUN_OWNERS)]]


def test_only_its_owners_know_a_run_directory() -> None:
    wrong = {
        name: uses
        for name, module in MODULES.items()
        if is_inside(name, "service") and name not in RUN_OWNERS
        if (uses := find_run_directory_uses(module.path.read_text()))
    }
    assert wrong == {}


@pytest.mark.parametrize(
    "source",
    [
        "json.loads((run.path / 'metrics.jsonl').read_text())",
        "run.metrics_path.read_text()",
        "sorted(run.checkpoints.glob('*'))",
        "np.load(run.checkpoints / name / 'x')",
        "path.glob('epoch-*/checkpoint.json')",
        "hash_file(run.status_path)",
    ],
)
def test_a_use_of_a_run_directory_is_found(source: str) -> None:
    assert find_run_directory_uses(source)


def find_shard_uses(source: str) -> list[str]:
    """Finds where code opens files of a shard set."""
    tree = ast.parse(source)
    names = [
        (node.lineno, node.attr)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in SHARD_WORDS
    ]
    return [f"line {line}: {name}" for line, name in names]


def test_only_the_shards_package_opens_shards() -> None:
    wrong = {
        name: uses
        for name, module in MODULES.items()
        if not is_inside(name, SHARD_OWNER) and name != LISTINGS
        if (uses := find_shard_uses(module.path.read_text()))
    }
    assert wrong == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pyarrow as pa\nwith pa.memory_map(path) as file:\n    pa.ipc.open_file(file).read_all()",
        "tf.data.TFRecordDataset(files)",
    ],
)
def test_opening_a_shard_is_found(source: str) -> None:
    assert find_shard_uses(source)


PRINTER = "pipelines.text"  # escapes what names from outside may contain
# Documents that escape control characters themselves
SAFE_DOCUMENTS = ("json.dumps", "yaml.dump")


def find_raw_prints(source: str) -> Iterator[str]:
    """Yields calls of `print`, or of a method of this name, whose argument is not escaped."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        name = ast.unparse(node.func)
        if name != "print" and not name.endswith(".print"):
            continue
        value = node.args[0]
        function = ast.unparse(value.func) if isinstance(value, ast.Call) else ""
        if function not in (*SAFE_DOCUMENTS, "escape_name"):
            yield f"{node.lineno}: {ast.unparse(node)}"


def test_all_output_is_escaped() -> None:
    raw = [
        f"{module.name}:{call}"
        for module in MODULES.values()
        if module.name != PRINTER
        for call in find_raw_prints(module.path.read_text(encoding="utf-8"))
    ]
    assert raw == []


@pytest.mark.parametrize(
    "source",
    ["print(name)", "print(*names)", "console.print(f'{name}')", "print(json.loads(text))"],
)
def test_raw_output_is_found(source: str) -> None:
    assert list(find_raw_prints(source))


UNTUNED = ("disable_autotuning", "configure_dataset")


def find_tuned_datasets(source: str) -> Iterator[str]:
    """Yields functions that create a dataset, but call none of `UNTUNED`."""
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, ast.FunctionDef):
            continue
        called = {ast.unparse(node.func) for node in ast.walk(function) if isinstance(node, ast.Call)}
        is_untuned = any(name.rpartition(".")[2] in UNTUNED for name in called)
        if any(name.startswith("tf.data.") and "Dataset" in name for name in called) and not is_untuned:
            yield f"{function.lineno}: {function.name}"


def test_no_dataset_is_tuned() -> None:
    """The iterators of those that are may take a minute to end, see `disable_autotuning`."""
    tuned = [
        f"{module.name}:{function}"
        for module in MODULES.values()
        for function in find_tuned_datasets(module.path.read_text(encoding="utf-8"))
    ]
    assert tuned == []


def test_a_tuned_dataset_is_found() -> None:
    assert list(find_tuned_datasets("def f():\n    return tf.data.Dataset.range(3).map(g)")) == ["1: f"]


LIGHT_MODULES = (
    "pipelines.spec",
    "pipelines.shards.plan",
    "pipelines.input.order",
    "pipelines.augment.draw",
    "service.config",
    "service.cli",
)


def test_light_modules_load_nothing_heavy() -> None:
    assert MODULES.keys() >= set(LIGHT_MODULES)
    code = f"import sys, {', '.join(LIGHT_MODULES)}; print(set({HEAVY}) & set(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "set()"


def test_help_loads_nothing_heavy() -> None:
    """`glassbox --help` responds at once, because it imports only light modules."""
    code = f"""
import sys
from service.cli import main
try:
    main(["--help"])
finally:
    print(set({HEAVY}) & set(sys.modules))
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "usage: glassbox" in result.stdout
    assert result.stdout.splitlines()[-1] == "set()"
