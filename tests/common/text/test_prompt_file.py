"""Prompt files."""

import doctest

import pytest

from common.text import prompt_file
from common.text.prompt_file import Prompt


def write(folder, text, name="p.txt"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_the_docstrings_hold():
    assert doctest.testmod(prompt_file).failed == 0


def test_a_file_has_sections_and_a_version_of_its_wording(tmp_path):
    text = "note\n[system]\nBe brief.\n\n[user]\n{a}\n[b]\n"
    prompt = Prompt.read(write(tmp_path, text), tmp_path)
    assert (prompt.system, prompt.user) == ("Be brief.", "{a}\n[b]")
    assert prompt.version.startswith("p@")
    assert Prompt.read("p", tmp_path) == prompt, "by name"
    write(tmp_path, "another note\n" + text)
    assert Prompt.read("p", tmp_path) == prompt, "comments change nothing"
    write(tmp_path, text.replace("brief", "long"))
    assert Prompt.read("p", tmp_path).version != prompt.version


def test_only_words_in_braces_are_placeholders(tmp_path):
    prompt = Prompt.read(write(tmp_path, '[user]\n{"a": {a}, "B": {B}, {}}'), tmp_path)
    assert prompt.fill(a="\\1 {a}") == ("", '{"a": \\1 {a}, "B": {B}, {}}')


@pytest.mark.parametrize("texts", [{}, {"a": "x", "b": "y"}, {"b": "y"}])
def test_names_that_differ_are_an_error(texts):
    with pytest.raises(ValueError, match="or in neither"):
        Prompt("v", "", "{a}").fill(**texts)


@pytest.mark.parametrize("text", ["", "hello", "[system]\nx", "[user]\n\n", "[user]\na\n[user]\nb"])
def test_a_file_of_another_form_is_an_error(tmp_path, text):
    with pytest.raises(ValueError, match="section"):
        Prompt.read(write(tmp_path, text), tmp_path)


def test_a_prompt_that_is_not_utf_8_is_named(tmp_path):
    (tmp_path / "p.txt").write_bytes(b"[user]\n\xff")
    with pytest.raises(ValueError, match=r"p.txt: not UTF-8"):
        Prompt.read("p", tmp_path)


def test_a_missing_prompt_names_the_others(tmp_path):
    write(tmp_path, "[user]\nx")
    (tmp_path / "a_list.txt").write_text("words that are no prompt")
    with pytest.raises(FileNotFoundError, match="choose from p,"):
        Prompt.read("q", tmp_path)
