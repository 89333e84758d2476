"""Prompt templates, to the letter."""

import json

import pytest

from alpacare_jax.data import prompts
from alpacare_jax.data.prompts import TEMPLATES
from tests.conftest import REPOSITORY

GOLDEN = json.loads((REPOSITORY / "tests/golden/templates.json").read_text())
"""What each author's code makes of one record, with its input and without."""
INSTRUCTION, INPUT = "Name the organ.", "It pumps blood."


@pytest.mark.parametrize("name", TEMPLATES)
def test_prompts_are_those_of_the_authors(name):
    template, golden = TEMPLATES[name], GOLDEN[name]
    assert template.prompt(INSTRUCTION, INPUT) == golden["with_input"]
    assert template.prompt(INSTRUCTION, "") == golden["without_input"]
    assert template.prompt(INSTRUCTION) == golden["without_input"]


def test_chatdoctor_does_not_repeat_the_instruction_that_it_states():
    stated = "If you are a doctor, please answer the medical questions based on the patient's "
    for instruction in (stated + "description.", ""):
        prompt = TEMPLATES["chatdoctor"].prompt(instruction, "My knee hurts.")
        assert prompt.endswith("\n\nPatient: My knee hurts.\n\nChatDoctor: ")
        assert prompt.count(stated) == 1


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("text", ["{input}", "{instruction}", "{0} {}", "}{", "{{x}}", "a{b"])
def test_braces_in_values_stay_text(name, text):
    golden = GOLDEN[name]
    expected = golden["with_input"].replace(INSTRUCTION, text).replace(INPUT, text)
    assert TEMPLATES[name].prompt(text, text) == expected
    assert TEMPLATES[name].prompt(text) == golden["without_input"].replace(INSTRUCTION, text)


@pytest.mark.parametrize("name", TEMPLATES)
def test_people_are_shown_a_prompt_without_its_frame(name):
    prompt = TEMPLATES[name].prompt(INSTRUCTION)
    assert TEMPLATES[name].without_frame(prompt).partition("\n\n### Input:")[0] == INSTRUCTION


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown template 'alpacca'; choose from alpaca, .*chat"):
        prompts.check_name("alpacca")
