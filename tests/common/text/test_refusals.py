"""Refusals by their first words."""

import doctest

import pytest

from common.text import refusals


def test_the_examples_in_the_docstrings_are_true():
    assert doctest.testmod(refusals).failed == 0


@pytest.mark.parametrize(
    "text, refused",
    [
        ("I cannot provide medical advice.", True),
        ("Unfortunately, I am unable to help with this.", True),
        ("I must decline.", True),
        ("  **I'm sorry, but I can't assist with that.**", True),
        ("Patients who cannot swallow need another form.", False),
        ("I can help: drink water.", False),
        ("", False),
    ],
)
def test_refusals_and_answers_that_resemble_them(text, refused):
    assert refusals.is_refusal(text) == refused
