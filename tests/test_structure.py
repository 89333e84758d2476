"""The structure of the sources: layers, cycles, folders, one home for every name, plain words."""

import ast
import collections
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

PACKAGES = ("common", "datagen", "alpacare_jax", "evaluation")

LAYERS = {
    "common": ["common"],
    "datagen": ["chat", "writing", "analysis", "datagen"],
    "alpacare_jax": [
        "reporting",
        "model",
        "distributed",
        "data",
        "formats",
        "checkpoints",
        "inference",
        "serving",
        "training",
        "planning",
        "releasing",
        "alpacare_jax",
    ],
    "evaluation": [
        "inputs",
        "judgements",
        "judging",
        "statistics",
        "scoring",
        "annotation",
        "reporting",
        "multiple_choice",
        "grading",
        "publishing",
        "evaluation",
    ],
}
"""The folders of each package from the bottom up; the package itself holds the commands."""

MAX_MODULES = 12

SHARED_MODULES = {"datagen.config", "evaluation.config"}
"""Modules beside the commands that folders below may import."""

BANNED = re.compile(
    r"\b(told|tells?|said|(?:go|goes|going|gone) on (?:with|from|where|again)|stood still|"
    r"there (?:already|twice)|sits? out|to be had|nobody knows|of one's own|at hand|"
    r"lies (?:below|beside)|stands beside)\b",
    re.IGNORECASE,
)
"""Phrases that an engineer of this field would not write in a message, docstring or comment."""


def modules() -> dict[str, Path]:
    """Dotted name -> file, for every module of the packages."""
    return {
        ".".join(path.relative_to(REPOSITORY).with_suffix("").parts): path
        for package in PACKAGES
        for path in sorted((REPOSITORY / package).rglob("*.py"))
        if path.name != "__init__.py"
    }


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """(module, name) of each `from module import name`; (module, "") of `import module`."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom):
            yield from ((str(node.module), alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)


def edges() -> dict[str, set[str]]:
    """Module -> the modules of the packages that it imports."""
    known = modules()
    found: dict[str, set[str]] = {}
    for name, path in known.items():
        targets = {f"{module}.{item}" for module, item in imports(path)}
        targets |= {module for module, _ in imports(path)}
        found[name] = targets & known.keys()
    return found


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """One cycle of a graph, as its nodes in order; empty if there is none."""
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str]:
        if node in path:
            return path[path.index(node) :]
        if node in done:
            return []
        for target in sorted(graph[node]):
            if found := visit(target, [*path, node]):
                return found
        done.add(node)
        return []

    return next(filter(None, (visit(node, []) for node in sorted(graph))), [])


def layer(module: str) -> int:
    """The position in LAYERS of the folder that holds a module."""
    package, *rest = module.split(".")
    folder = rest[0] if len(rest) > 1 else package
    names = LAYERS[package]
    return names.index(folder) if folder in names else -1  # common's folders are below common


def test_no_import_cycles():
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == ["a", "b", "c"]
    assert cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
    assert cycle(edges()) == []


def test_folders_import_only_downwards():
    upward = [
        f"{name} imports {target}"
        for name, targets in edges().items()
        for target in targets
        if name.split(".")[0] == target.split(".")[0] != "common"
        and layer(target) > layer(name)
        and target not in SHARED_MODULES
    ]
    assert upward == []


def test_every_folder_is_in_a_layer():
    for package in PACKAGES:
        folders = {path.parent.name for path in (REPOSITORY / package).rglob("*.py")}
        assert folders - set(LAYERS[package]) <= {"reports", "text", "batch", "sections"}


def test_no_command_is_imported():
    commands = {name for name in modules() if name.count(".") == 1} - SHARED_MODULES
    for name, targets in edges().items():
        found = {target for target in targets & commands if not target.startswith("common.")}
        assert not found, f"{name} imports {found}"


@pytest.mark.parametrize("package", PACKAGES)
def test_a_folder_holds_at_most_a_dozen_modules(package):
    counts = collections.Counter(
        path.parent for path in (REPOSITORY / package).rglob("*.py") if path.name != "__init__.py"
    )
    assert max(counts.values()) <= MAX_MODULES, counts.most_common(2)


def public_definitions(path: Path) -> Iterator[str]:
    """Classes and upper-case constants that a module defines at its top level."""
    for node in tree(path).body:
        if isinstance(node, ast.ClassDef):
            yield node.name
        targets = node.targets if isinstance(node, ast.Assign) else []
        targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
        for target in targets:
            names = target.elts if isinstance(target, ast.Tuple) else [target]
            for name in names:
                if isinstance(name, ast.Name) and name.id.isupper():
                    yield name.id


def test_a_class_or_constant_has_one_definition():
    homes = collections.defaultdict(list)
    for name, path in modules().items():
        for definition in public_definitions(path):
            if not definition.startswith("_"):
                homes[definition].append(name)
    assert {name: found for name, found in homes.items() if len(found) > 1} == {}


def test_a_name_is_imported_from_the_module_that_defines_it():
    known = modules()
    imported = {name: {item for _, item in imports(path)} for name, path in known.items()}
    defined = {
        name: {
            node.name
            for node in tree(path).body
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        }
        | set(public_definitions(path))
        for name, path in known.items()
    }
    reexports = [
        f"{name}: {item} from {module}"
        for name, path in known.items()
        for module, item in imports(path)
        if module in known and item in imported[module] and item not in defined[module]
    ]
    assert reexports == []


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of each string and comment of a Python file, lists of words left out."""
    source = path.read_text(encoding="utf-8")
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        is_list = re.fullmatch(r'"""[a-z\s-]+"""', token.string)
        if token.type in (tokenize.STRING, tokenize.COMMENT) and not is_list:
            yield token.start[0], token.string


@pytest.mark.parametrize("folder", [*PACKAGES, "configs", "launch", "benchmarks"])
def test_messages_and_comments_are_in_plain_english(folder):
    assert BANNED.search("3 batches are told") and not BANNED.search("the second tale")
    odd = []
    for path in sorted((REPOSITORY / folder).rglob("*.py")):
        for line, text in prose(path):
            odd += [f"{path}:{line}: {found[0]}" for found in BANNED.finditer(text)]
    for path in sorted((REPOSITORY / folder).rglob("*.sh")):
        for line, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            odd += [f"{path}:{line}: {found[0]}" for found in BANNED.finditer(text)]
    assert odd == []
