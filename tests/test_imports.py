"""Who may import whom, read from the sources, and that every command starts."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from common import alpacare
from tests.conftest import REPOSITORY
from tests.docs import documents
from tests.support import commands

PACKAGES = (
    *("common", "alpacare_jax", "datagen", "evaluation"),
    *("configs", "launch", "benchmarks"),
)
COMMANDS = tuple(alpacare.COMMANDS.values())

ALLOWED = {
    "common": ("common",),
    "alpacare_jax": ("alpacare_jax", "common"),
    "datagen": ("datagen", "common"),
    "evaluation": ("evaluation", "common", "datagen.records", "datagen.chat"),
    "configs": ("configs",),
}
"""What each package may import of ours; `launch` and `benchmarks` may import anything but each
other and `configs`, which is loaded by path."""


def sources(package: str) -> list[Path]:
    return sorted((REPOSITORY / package).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Dotted names that a file imports, inside functions too; `from a import b` gives `a.b`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name: str, allowed: str) -> bool:
    return name == allowed or name.startswith(allowed + ".")


@pytest.mark.parametrize("package", PACKAGES)
def test_arrows_between_packages(package):
    default = tuple(p for p in PACKAGES if p not in ("launch", "benchmarks", "configs"))
    allowed = ALLOWED.get(package, (*default, package))
    for path in sources(package):
        for name in imports(path):
            if name.split(".")[0] in PACKAGES:
                assert any(within(name, a) for a in allowed), f"{path} imports {name}"


def test_the_check_of_arrows_sees_imports(tmp_path):
    file = tmp_path / "x.py"
    file.write_text("import a.b\ndef f():\n    from c.d import e, g\n")
    assert list(imports(file)) == ["a.b", "c.d.e", "c.d.g"]
    assert within("datagen.chat.Client", "datagen.chat")
    assert not within("datagen.chatter", "datagen.chat")


@pytest.mark.parametrize("package", ["common", "datagen", "evaluation"])
def test_no_jax_and_no_torch_in_the_data_packages(package):
    heavy = {"jax", "jaxlib", "flax", "optax", "orbax", "torch", "transformers", "tensorflow"}
    for path in sources(package):
        assert not heavy.intersection(name.split(".")[0] for name in imports(path)), path


def test_jax_stays_in_alpacare_jax():
    for package in ("common", "datagen", "evaluation", "configs"):
        for path in sources(package):
            assert not any(within(name, "jax") for name in imports(path)), path


USING_TORCH = {
    "formats/torch_file.py": {"torch"},  # to read its files
    "releasing/programs.py": {"torch", "transformers"},  # to ask it what we are asked
}


def test_no_api_client_and_no_torch_in_alpacare_jax():
    for path in sources("alpacare_jax"):
        roots = {name.split(".")[0] for name in imports(path)}
        heavy = {"openai", "anthropic", "torch", "transformers"}
        assert roots & heavy <= USING_TORCH.get(f"{path.parent.name}/{path.name}", set()), path


def test_init_imports_nothing():
    for package in ("alpacare_jax", "datagen", "evaluation"):
        assert list(imports(REPOSITORY / package / "__init__.py")) == ["common.exits"]


def test_no_module_is_named_like_one_of_the_standard_library():
    for package in PACKAGES:
        for path in sources(package):
            assert path.stem not in sys.stdlib_module_names, path
            assert path.stem not in ("utils", "util", "helpers", "misc"), path


def functions_that_name(path: Path, name: str) -> Iterator[tuple[str, int]]:
    """(function, line) of each use of a name, as `x.NAME` or `NAME`; "" outside any function."""

    def walk(node: ast.AST, function: str) -> Iterator[tuple[str, int]]:
        for child in ast.iter_child_nodes(node):
            inner = function
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) and not function:
                inner = child.name
            if getattr(child, "attr", getattr(child, "id", None)) == name:
                yield function, child.lineno
            yield from walk(child, inner)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), "")


@pytest.mark.parametrize("package", [p for p in PACKAGES if p != "benchmarks"])  # scripts
def test_flags_are_read_in_main_only(package):
    read = 0
    for path in sources(package):
        if path.name == "cli.py":  # parses them for every command
            continue
        for function, line in functions_that_name(path, "FLAGS"):
            assert function in ("main", "define_flags"), f"{path}:{line} in {function}"
            read += 1
    assert read >= sum(within(command, package) for command in COMMANDS)


# In processes of their own.

BLOCKED = """
import importlib, pkgutil, sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ImportError(f"{{name}} is blocked")

sys.meta_path.insert(0, Block())
for package in {packages!r}:
    module = importlib.import_module(package)
    for found in pkgutil.walk_packages(getattr(module, "__path__", []), package + "."):
        importlib.import_module(found.name)
loaded = {{name.split(".")[0] for name in sys.modules}}
assert not loaded & set({blocked!r}), loaded & set({blocked!r})
print(sorted(name for name in sys.modules if name.split(".")[0] in {ours!r}))
"""


def run_python(args: tuple[str, ...]) -> subprocess.CompletedProcess:
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [sys.executable, *args], cwd=REPOSITORY, env=env, capture_output=True, text=True
    )


PEERS = ["torch", "transformers", "safetensors", "gguf", "tensorboardX"]
IMPORTS = {
    "data packages": (["common", "datagen", "evaluation"], ["jax", "jaxlib", "torch"]),
    "train": (["alpacare_jax.train"], ["openai", "anthropic", *PEERS]),
    "init": (["alpacare_jax.__init__"], ["jax", "numpy", "absl"]),
}
"""Packages that are imported, and what must not be imported with them."""


@pytest.mark.parametrize("name", IMPORTS)
def test_imports_without(name):
    packages, blocked = IMPORTS[name]
    script = BLOCKED.format(packages=packages, blocked=blocked, ours=PACKAGES)
    process = run_python(("-c", script))
    assert process.returncode == 0, process.stderr
    if name == "train":
        assert "alpacare_jax.train" in process.stdout
        assert "datagen" not in process.stdout
    if name == "init":
        assert process.stdout.strip() == (
            "['alpacare_jax', 'alpacare_jax.__init__', 'common', 'common.exits', 'common.extras']"
        )


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command):
    done = commands.run(command, "--help")
    out = done.stdout
    assert (done.returncode, done.stderr) == (0, "")
    assert f"python -m {command}" in out, "the docstring shows the call"
    shown = set(re.findall(r"^  (?:-\?,)?--(?:\[no\])?(\w+)", out, re.MULTILINE))
    assert documents.defined_flags(command) <= shown != set(), "documents are checked by them"
