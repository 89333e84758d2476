"""Names and backbones of systems."""

import json

import pytest

from evaluation.reporting import systems

GENERATORS = ["alpaca-7b", "ours"]


def read(tmp_path, content):
    path = tmp_path / "systems.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return systems.read(str(path), GENERATORS)


def test_names_backbones_and_what_is_not_named(tmp_path):
    found = read(tmp_path, {"ours": {"name": "AlpaCare", "backbone": "LLaMA-7B"}})
    assert [found[name].label for name in GENERATORS] == ["alpaca-7b", "AlpaCare (LLaMA-7B)"]
    assert systems.read("", GENERATORS)["ours"].label == "ours"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ([], "must be a JSON object"),
        ({"their": {}}, "'their' was not judged; choose from alpaca-7b, ours"),
        ({"ours": {"nmae": "x"}}, "'ours' may have only name and backbone, as strings"),
        ({"ours": {"name": 1}}, "'ours' may have only"),
        ({"ours": {"name": "alpaca-7b"}}, "'alpaca-7b' and 'ours' are both 'alpaca-7b'"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, content)


def test_no_such_file():
    with pytest.raises(FileNotFoundError, match="no such file: none"):
        systems.read("none", GENERATORS)
