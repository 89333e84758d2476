"""Filters of single tasks."""

import dataclasses

import pytest

from common.records import Task, read_tasks
from datagen.writing.filters import Filters, FiltersConfig
from tests.datagen.writing.test_requests import SEEDS


def make_task(instruction="Explain the causes of gout to me.", given="", name="t") -> Task:
    return Task(name, instruction, given, "Chat", "Gout", "Nurse", 1)


OFF = FiltersConfig(0, 0, 0, 0, "", "", "")


@pytest.mark.parametrize(
    "settings, task, reason",
    [
        ({}, make_task("Hi"), ""),
        ({"min_words": 4}, make_task("Define gout now."), "instruction too short"),
        ({"min_words": 4}, make_task("Define gout right now."), ""),
        ({"max_words": 6}, make_task(), "instruction too long"),
        ({"min_input_words": 3}, make_task(given="two words"), "input too short"),
        ({"min_input_words": 3}, make_task(given=""), ""),
        ({"max_input_words": 1}, make_task(given="two words"), "input too long"),
        ({"blacklist": "plot, go to"}, make_task("Plot the fever."), "blacklisted"),
        ({"blacklist": "plot, go to"}, make_task("Should I go to bed?"), "blacklisted"),
        ({"blacklist": "plot, go to"}, make_task("Who plots a trial?"), ""),
        ({"domain_words": True}, make_task(), ""),
        ({"domain_words": True}, make_task("Plan a trip to Rome."), "not of the domain"),
        ({"language": "en"}, make_task(), ""),
        ({"language": "en"}, make_task("Explique las causas de la gota."), "another language"),
    ],
)
def test_filters(tmp_path, settings, task, reason):
    if "domain_words" in settings:
        (tmp_path / "words.txt").write_text("# a comment\ngout\nrheum\n")
        settings = settings | {"domain_words": str(tmp_path / "words.txt")}
    assert Filters(dataclasses.replace(OFF, **settings)).reason(task) == reason


def test_filters_that_admit_nothing_are_an_error(tmp_path):
    with pytest.raises(ValueError, match="min_words 9"):
        dataclasses.replace(OFF, min_words=9, max_words=8)
    with pytest.raises(ValueError, match="such as en"):
        dataclasses.replace(OFF, language="english")
    (tmp_path / "empty.txt").write_text("# nothing\n")
    with pytest.raises(ValueError, match="no words"):
        Filters(dataclasses.replace(OFF, domain_words=str(tmp_path / "empty.txt")))


def test_the_shipped_words_of_medicine_let_every_seed_in():
    filters = Filters(dataclasses.replace(OFF, domain_words="datagen/prompts/medical_words.txt"))
    assert [task.id for task in read_tasks(SEEDS) if filters.reason(task)] == []
    others = ["Write a poem about autumn.", "Sort these integers.", "Name the capital of Peru."]
    assert all(filters.reason(make_task(text)) for text in others)
