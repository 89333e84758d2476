"""What the documents consist of: links, anchors, code blocks, commands and names of functions."""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import REPOSITORY
from tests.test_structure import PACKAGES

FOLDERS = (*PACKAGES, "configs", "launch", "benchmarks", "tests", "docs")
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
COMMAND = re.compile(
    r"(?<![\w/.-])(?P<program>alpacare|python3? -m|python3?|bash) "
    r"(?P<name>[\w./-]+)(?P<rest>[^\n]*)"
)
FLAG = re.compile(r"(?<!\S)--([A-Za-z][\w.]*)")
DEFINITION = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def files() -> list[Path]:
    """All documents of the repository."""
    found = [*REPOSITORY.glob("*.md")]
    for folder in FOLDERS:
        found += (REPOSITORY / folder).rglob("*.md")
    return sorted(found)


def prose(text: str) -> str:
    """A document without its code blocks."""
    return FENCE.sub("", text)


def anchors(text: str) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them.

    >>> sorted(anchors("# A `b.c`: [d](e)\\n## The same\\n## The same\\n"))
    ['a-bc-d', 'the-same', 'the-same-1']
    """
    found: dict[str, int] = {}
    for title in re.findall(r"^#+ +(.+?) *$", prose(text), re.MULTILINE):
        title = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title)
        slug = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        number = found[slug] = found.get(slug, -1) + 1
        if number:
            found[f"{slug}-{number}"] = 0
    return set(found)


def links(text: str) -> Iterator[str]:
    """The targets of a document's links and images."""
    yield from LINK.findall(SPAN.sub("", prose(text)))


def spans(text: str) -> Iterator[str]:
    """Code inside sentences; a line break counts as a space."""
    for span in SPAN.findall(prose(text)):
        yield " ".join(span.split())


def commands(text: str) -> Iterator[tuple[str, str, str]]:
    """(kind, name, arguments) of each command in code blocks and in code inside sentences.

    >>> list(commands("`alpacare train --x=1`"))
    [('alpacare', 'train', ' --x=1')]
    """
    pieces = [body for _, language, body in FENCE.findall(text) if language != "mermaid"]
    for piece in [*pieces, *spans(text)]:
        joined = re.sub(r"\\\n *", " ", piece)
        for line in joined.splitlines():
            line = line.partition("  #")[0].partition(" # ")[0]
            if line.lstrip().startswith("#"):
                continue
            for part in re.split(r" -- | && |; ", line):
                for found in COMMAND.finditer(part):
                    yield (
                        found["program"].replace("python3", "python"),
                        found["name"],
                        found["rest"],
                    )


def flag_names(arguments: str) -> list[str]:
    """Names of the flags of a command."""
    return FLAG.findall(arguments)


def source(module: str) -> Path:
    """The file of a dotted module."""
    return REPOSITORY / (module.replace(".", "/") + ".py")


def _calls(module: str) -> list[ast.Call]:
    path = source(module)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


SHARED_FLAGS = {
    "processes": "alpacare_jax.distributed.processes",
    "loading": "alpacare_jax.inference.loading",
    "sampling": "alpacare_jax.inference.sampling",
}
"""Modules whose `define_flags` commands call, by the names they have there."""


@functools.cache
def defined_flags(module: str) -> frozenset[str]:
    """The flags of a command, read from its source and from those whose define_flags it calls."""
    found = {"help", "debug"}
    for call in _calls(module):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else ""
        first = call.args[0] if call.args else None
        if name.startswith("DEFINE") and isinstance(first, ast.Constant):
            found.add(str(first.value))
        if name == "define_flags" and isinstance(call.func, ast.Attribute):
            owner = call.func.value
            if isinstance(owner, ast.Name) and owner.id in SHARED_FLAGS:
                found |= defined_flags(SHARED_FLAGS[owner.id])
    return frozenset(found)


def defines(path: Path, dotted: str) -> bool:
    """Whether a file defines a function, class, method or constant."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    for name in dotted.split("."):
        for node in body:
            targets = node.targets if isinstance(node, ast.Assign) else []
            targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
            if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                return True
            if isinstance(node, DEFINITION) and node.name == name:
                body = node.body
                break
        else:
            return False
    return True


def resolves(dotted: str) -> bool:
    """Whether `package.module` or `package.module.name` exists."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        path = source(".".join(parts[:length]))
        if path.exists():
            return length == len(parts) or defines(path, ".".join(parts[length:]))
        if length == len(parts) and path.with_suffix("").is_dir():
            return True
    return False
