"""The import graph of the project: which module imports which, summed up per package, and every cycle in it.

`python tests/import_graph.py` prints it, and `--modules` the edges between modules as well. It reads the
source files and imports none of them.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("pipelines", "service")


@dataclass(frozen=True, order=True)
class Import:
    """One import statement.

    Attributes:
        name: Dotted name of what is imported: a module, or an attribute of one.
        line: Line number in the importing file.
        is_deferred: Whether the statement is inside a function and runs when that is called.
    """

    name: str
    line: int
    is_deferred: bool = False


@dataclass
class Module:
    """One source file.

    Attributes:
        name: Dotted name by which it is imported.
        path: Location of the file.
        imports: Its import statements, those for type checkers alone (`if TYPE_CHECKING:`) left out.
    """

    name: str
    path: Path
    imports: list[Import] = field(default_factory=list)

    @property
    def package(self) -> str:
        """Dotted name of the package the module is in; an `__init__` is in its own."""
        return self.name if self.path.name == "__init__.py" else self.name.rpartition(".")[0]


def load_modules(root: Path = ROOT, packages: tuple[str, ...] = PACKAGES) -> dict[str, Module]:
    """Reads the modules of some packages.

    Args:
        root: Directory that contains the packages.
        packages: Names of the top-level packages.

    Returns:
        The modules by dotted name.
    """
    modules: dict[str, Module] = {}
    for name, path in find_modules(root, packages).items():
        modules[name] = Module(name, path, read_imports(path, find_containing_package(path, root)))
    return modules


def find_modules(root: Path = ROOT, packages: tuple[str, ...] = PACKAGES) -> dict[str, Path]:
    """Returns the files of some packages by the dotted names that they are imported by."""
    paths: dict[str, Path] = {}
    for package in packages:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            if parts[-1] == "__init__":
                parts = parts[:-1]
            paths[".".join(parts)] = path
    return paths


def find_containing_package(path: Path, root: Path = ROOT) -> str:
    """Returns the dotted name of the package that a file is in; an `__init__.py` is in its own."""
    directory = path.parent
    return ".".join(directory.relative_to(root).parts) if directory.is_relative_to(root) else ""


def read_imports(path: Path, package: str = "") -> list[Import]:
    """Reads the import statements of a file, those for type checkers alone left out.

    Args:
        path: The source file.
        package: Dotted name of the package that relative imports start from.
    """
    return parse_imports(path.read_text(), package)


def parse_imports(source: str, package: str = "") -> list[Import]:
    """Finds the import statements in Python source code; arguments as those of `read_imports`."""
    return list(_walk(ast.parse(source), package, is_deferred=False))


def _walk(node: ast.AST, package: str, is_deferred: bool) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield Import(alias.name, node.lineno, is_deferred)
    elif isinstance(node, ast.ImportFrom):
        module = _resolve(node, package)
        for alias in node.names:
            yield Import(f"{module}.{alias.name}", node.lineno, is_deferred)
    elif isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.importorskip":
        yield Import(ast.literal_eval(node.args[0]), node.lineno, is_deferred)
    elif isinstance(node, ast.If) and _is_for_type_checkers(node):
        for child in node.orelse:
            yield from _walk(child, package, is_deferred)
    else:
        is_function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            yield from _walk(child, package, is_deferred or is_function)


def _resolve(node: ast.ImportFrom, package: str) -> str:
    """Returns the absolute name of the module of a `from` import."""
    name = node.module or ""
    if not node.level:
        return name
    parents = package.split(".")
    base = parents[: len(parents) - node.level + 1]
    return ".".join([*base, name]) if name else ".".join(base)


def _is_for_type_checkers(node: ast.If) -> bool:
    return ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def find_module(name: str, modules: Mapping[str, object]) -> str | None:
    """Finds the module that an imported name is, or is an attribute of; None for a name from elsewhere."""
    parent = name.rpartition(".")[0]
    return next((candidate for candidate in (name, parent) if candidate in modules), None)


def build_graph(modules: Mapping[str, Module], with_deferred: bool = True) -> dict[str, set[str]]:
    """Builds the graph of the modules.

    That `import a.b` also runs `a/__init__.py` does not count: only what a file names itself does.

    Args:
        modules: The modules by dotted name, as from `load_modules`.
        with_deferred: Whether imports inside functions count.

    Returns:
        The names of the modules that each module imports.
    """
    graph: dict[str, set[str]] = {name: set() for name in modules}
    for name, module in modules.items():
        for statement in module.imports:
            target = find_module(statement.name, modules)
            if target not in (None, name) and (with_deferred or not statement.is_deferred):
                graph[name].add(str(target))
    return graph


def find_cycles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Finds the cycles of a graph.

    Returns:
        A sorted list of names for each group of nodes that all reach each other (a strongly connected
        component of more than one node).
    """
    reachable = {name: find_reachable(graph, name) for name in graph}
    cycles: list[list[str]] = []
    for name in sorted(graph):
        group = sorted(other for other in reachable[name] if name in reachable[other])
        if group and group[0] == name:
            cycles.append(group)
    return cycles


def find_reachable(graph: Mapping[str, set[str]], start: str) -> set[str]:
    """Finds all nodes that a path of at least one edge leads to from `start`."""
    found: set[str] = set()
    waiting = list(graph[start])
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting.extend(graph[name])
    return found


def count_package_edges(modules: Mapping[str, Module]) -> Counter[tuple[str, str]]:
    """Counts the edges between modules of different packages, by importing and imported package."""
    edges: Counter[tuple[str, str]] = Counter()
    for name, targets in build_graph(modules).items():
        importer = modules[name].package
        for target in targets:
            imported = modules[target].package
            if imported != importer:
                edges[importer, imported] += 1
    return edges


def format_graph(modules: Mapping[str, Module], with_modules: bool = False) -> str:
    """Formats the graph as text: packages, the edges between them with counts, and the cycles of modules."""
    graph = build_graph(modules)
    sizes = Counter(module.package for module in modules.values())
    edges = count_package_edges(modules)
    lines = [f"{len(modules)} modules in {len(sizes)} packages, {sum(map(len, graph.values()))} imports"]
    for package in sorted(sizes):
        lines.append(f"{package} ({sizes[package]} modules)")
        lines += [
            f"  -> {target} ({edges[package, target]})" for target in sorted(sizes) if edges[package, target]
        ]
    if with_modules:
        lines += [f"{name} -> {target}" for name in sorted(graph) for target in sorted(graph[name])]
    cycles = find_cycles(graph)
    lines.append(f"cycles of modules: {len(cycles)}")
    lines += ["  " + " <-> ".join(cycle) for cycle in cycles]
    return "\n".join(lines)


def main() -> int:
    """Prints the graph; returns 1 if it has a cycle."""
    parser = argparse.ArgumentParser(description="Prints the import graph of the project.")
    parser.add_argument("--modules", action="store_true", help="list the imports between modules too")
    parser.add_argument("--root", type=Path, default=ROOT, help="directory that contains the packages")
    options = parser.parse_args()
    modules = load_modules(options.root)
    print(format_graph(modules, options.modules))
    return int(bool(find_cycles(build_graph(modules))))


if __name__ == "__main__":
    sys.exit(main())
