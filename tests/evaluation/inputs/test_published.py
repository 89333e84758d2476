"""Published answers by name, in both layouts and in columns of the test set."""

import pytest

from evaluation.inputs import published
from tests.support.published_files import flat, original, small

__all__ = ["flat", "original", "small"]  # fixtures


def test_a_file_of_its_own_comes_before_a_column(original):
    path, column = published.find("gpt-4", "medinstruct", original)
    assert (path.name, column) == ("medsi_output.jsonl", "")
    path, column = published.find("text-davinci-003", "medinstruct", original)
    assert (path.name, column) == ("MedInstruct-test.jsonl", "text-davinci-003-answer")


def test_all_names_of_a_benchmark(flat):
    assert published.names("icliniq", flat) == ["alpacare-7b", "claude-2", "gpt-4"]
    assert "gpt-3.5-turbo-0301" in published.names("alpaca_farm", flat)
    assert published.names("cardiology", flat) == []


def test_an_unknown_name_lists_the_known_ones(flat):
    with pytest.raises(FileNotFoundError, match=r"'x' to icliniq, only of alpacare-7b, claude-2"):
        published.find("x", "icliniq", flat)


def test_a_name_is_no_pattern(flat):
    with pytest.raises(FileNotFoundError):
        published.find("gpt-*", "icliniq", flat)
