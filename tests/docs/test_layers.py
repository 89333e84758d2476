"""The diagram of layers is drawn from the imports."""

from tests.docs import layers


def test_the_diagram_is_that_of_the_sources():
    text = layers.DOCUMENT.read_text(encoding="utf-8")
    assert layers.replaced(text, layers.diagram()) == text, (
        "run python -m tests.docs.layers --write"
    )


def test_reduction_keeps_what_is_reachable():
    graph = layers.folders()
    reduced = layers.reduce(graph)
    assert all(layers.reachable(graph, [n]) == layers.reachable(reduced, [n]) for n in graph)
    assert sum(map(len, reduced.values())) < sum(map(len, graph.values()))
    small = {"a": {"b", "c"}, "b": {"c"}, "c": set()}
    assert layers.reduce(small) == {"a": {"b"}, "b": {"c"}, "c": set()}
