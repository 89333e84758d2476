"""Published answers by name, in both layouts and in columns of the test set."""

import pytest

from evaluation.inputs import outputs
from tests.support.published_files import flat, original, small

__all__ = ["flat", "original", "small"]  # fixtures


def test_a_file_of_its_own_comes_before_a_column(original):
    path, column = outputs.find("gpt-4", "medinstruct", original)
    assert (path.name, column) == ("medsi_output.jsonl", "")
    path, column = outputs.find("text-davinci-003", "medinstruct", original)
    assert (path.name, column) == ("MedInstruct-test.jsonl", "text-davinci-003-answer")


def test_all_names_of_a_benchmark(flat):
    assert outputs.names("icliniq", flat) == ["alpacare-7b", "claude-2", "gpt-4"]
    assert "gpt-3.5-turbo-0301" in outputs.names("alpaca_farm", flat)
    assert outputs.names("cardiology", flat) == []


def test_an_unknown_name_lists_the_known_ones(flat):
    with pytest.raises(FileNotFoundError, match=r"'x' to icliniq, only of alpacare-7b, claude-2"):
        outputs.find("x", "icliniq", flat)


def test_a_name_is_no_pattern(flat):
    with pytest.raises(FileNotFoundError):
        outputs.find("gpt-*", "icliniq", flat)
