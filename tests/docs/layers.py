"""The diagram of layers in docs/architecture.md, drawn from the imports.

python -m tests.docs.layers            prints it
python -m tests.docs.layers --write    replaces it in the document
"""

import sys
from collections.abc import Iterable
from pathlib import Path

from tests.conftest import REPOSITORY
from tests.test_structure import LAYERS, SHARED_MODULES, edges

DOCUMENT = REPOSITORY / "docs" / "architecture.md"
BEGIN, END = "<!-- layers: made by tests/docs/layers.py -->\n", "<!-- end of layers -->"

Graph = dict[str, set[str]]


def folder(module: str) -> str:
    """The node of a module: a folder, the commands of a package, or a shared module.

    >>> folder("common.reports.page"), folder("datagen.chat.client"), folder("datagen.stats")
    ('common', 'datagen/chat', 'datagen commands')
    """
    package, *rest = module.split(".")
    if package == "common":
        return package
    if module in SHARED_MODULES:
        return module.replace(".", "/") + ".py"
    return f"{package}/{rest[0]}" if len(rest) > 1 else f"{package} commands"


def folders() -> Graph:
    """Folder -> the folders that it imports."""
    graph: Graph = {}
    for module, targets in edges().items():
        node = folder(module)
        graph.setdefault(node, set()).update(map(folder, targets))
    return {node: targets - {node} for node, targets in graph.items()}


def reachable(graph: Graph, starts: Iterable[str]) -> set[str]:
    """All nodes on paths from `starts`, which are included."""
    found, left = set(), list(starts)
    while left:
        node = left.pop()
        if node not in found:
            found.add(node)
            left += graph[node]
    return found


def reduce(graph: Graph) -> Graph:
    """Without edges that a longer path implies.

    >>> reduce({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == {"a": {"b"}, "b": {"c"}, "c": set()}
    True
    """
    return {
        node: {t for t in targets if t not in reachable(graph, targets - {t})}
        for node, targets in graph.items()
    }


def height(graph: Graph, node: str) -> int:
    """The length of the longest path down from a node."""
    return 1 + max((height(graph, target) for target in graph[node]), default=-1)


def identifier(node: str) -> str:
    """A node's name as Mermaid takes it."""
    return node.replace("/", "_").replace(" ", "_").replace(".", "_")


def diagram() -> str:
    """A Mermaid graph of the folders, and a list of everything that each imports."""
    graph = folders()
    lines = ["```mermaid", "graph TD"]
    for package in LAYERS:
        if package == "common":
            lines.append('  common["common"]')
            continue
        lines.append(f'  subgraph {package}_package["{package}"]')
        for node in sorted(n for n in graph if n.startswith(package)):
            label = node.removeprefix(package).lstrip("/ ")
            lines.append(f'    {identifier(node)}["{label}"]')
        lines.append("  end")
    for node, targets in sorted(reduce(graph).items()):
        lines += [f"  {identifier(node)} --> {identifier(target)}" for target in sorted(targets)]
    lines += ["```", "", "| folder | imports |", "|---|---|"]
    order = sorted(graph, key=lambda node: (node.split("/")[0].split()[0], -height(graph, node)))
    for node in order:
        imported = sorted(graph[node])
        lines.append(f"| {node} | {', '.join(imported) or 'nothing of the project'} |")
    return "\n".join(lines) + "\n"


def replaced(text: str, new: str, begin: str = BEGIN, end: str = END) -> str:
    """A document with `new` between the markers.

    Raises:
      ValueError: the document has no markers.
    """
    before, _, rest = text.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise ValueError(f"the document has no lines {begin.strip()!r} and {end!r}")
    return before + begin + new + end + after


def write(document: Path, new: str, begin: str, end: str) -> None:
    """Prints `new` or, with --write, puts it between the markers of a document."""
    if "--write" not in sys.argv:
        print(new, end="")
        return
    text = document.read_text(encoding="utf-8")
    document.write_text(replaced(text, new, begin, end), encoding="utf-8")


if __name__ == "__main__":
    write(DOCUMENT, diagram(), BEGIN, END)
