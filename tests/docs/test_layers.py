"""What documents show of the sources is made from the sources."""

from tests.docs import layers, provider_errors


def test_the_diagram_is_that_of_the_sources():
    text = layers.DOCUMENT.read_text(encoding="utf-8")
    assert layers.replaced(text, layers.diagram()) == text, (
        "run python -m tests.docs.layers --write"
    )


def test_the_table_of_errors_is_the_one_that_decides():
    text = provider_errors.DOCUMENT.read_text(encoding="utf-8")
    markers = provider_errors.BEGIN, provider_errors.END
    assert layers.replaced(text, provider_errors.table(), *markers) == text, (
        "run python -m tests.docs.provider_errors --write"
    )


def test_reduction_keeps_what_is_reachable():
    graph = layers.folders()
    reduced = layers.reduce(graph)
    assert all(layers.reachable(graph, [n]) == layers.reachable(reduced, [n]) for n in graph)
    assert sum(map(len, reduced.values())) < sum(map(len, graph.values()))
    small = {"a": {"b", "c"}, "b": {"c"}, "c": set()}
    assert layers.reduce(small) == {"a": {"b"}, "b": {"c"}, "c": set()}
