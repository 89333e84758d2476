"""Prompt templates, to the letter."""

import pytest

from alpacare_jax.data import prompts

WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n"
    "\n"
    "### Instruction:\n"
    "Name the organ.\n"
    "\n"
    "### Input:\n"
    "It pumps blood.\n"
    "\n"
    "### Response:"
)
WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n"
    "\n"
    "### Instruction:\n"
    "Name the organ.\n"
    "\n"
    "### Response:"
)


def test_alpaca_text_is_that_of_the_original():
    alpaca = prompts.get("alpaca")
    assert alpaca.prompt("Name the organ.", "It pumps blood.") == WITH_INPUT
    assert alpaca.prompt("Name the organ.", "") == WITHOUT_INPUT
    assert alpaca.prompt("Name the organ.") == WITHOUT_INPUT


@pytest.mark.parametrize("name", prompts.TEMPLATES)
@pytest.mark.parametrize("text", ["{input}", "{instruction}", "{0} {}", "}{", "{{x}}", "a{b"])
def test_braces_in_values_stay_text(name, text):
    template = prompts.get(name)
    with_input = template.with_input.replace("{instruction}", "\0").replace("{input}", "\1")
    without = template.without_input.replace("{instruction}", "\0")
    assert template.prompt(text, text) == with_input.replace("\0", text).replace("\1", text)
    assert template.prompt(text) == without.replace("\0", text)


@pytest.mark.parametrize("name", prompts.TEMPLATES)
def test_every_template_holds_the_values_once(name):
    prompt = prompts.get(name).prompt("INSTRUCTION", "INPUT")
    assert prompt.count("INSTRUCTION") == 1
    assert prompt.count("INPUT") == 1
    assert prompts.get(name).prompt("INSTRUCTION").count("INSTRUCTION") == 1


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown template 'alpacca'; choose from .*alpaca"):
        prompts.get("alpacca")
