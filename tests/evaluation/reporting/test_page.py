"""The page: one file that fetches nothing, in which no text becomes markup."""

import re
from html.parser import HTMLParser

import pytest

from evaluation.judgements import reading, workdirs
from evaluation.reporting import judge_settings, outline, transcripts
from evaluation.reporting.content import ReportContent
from evaluation.reporting.page import build as page_of
from evaluation.reporting.sections import questions
from evaluation.reporting.systems import System
from evaluation.scoring.measurement import measure
from tests.support import judge_workdirs


def build(folder, *, systems=None, max_bytes=10**6, title="Evaluation report"):
    found, _ = reading.read([folder])
    texts = workdirs.read([folder], found)
    results = measure(found, None, texts, seed=0)
    named = {name: System((systems or {}).get(name, name)) for name in results.systems}
    packed = transcripts.pack(found, None, texts, systems=named, seed=0, max_bytes=max_bytes)
    chosen = questions.choose(found, texts, (), 1, 0)
    content = ReportContent(results, named, questions.collect(found, texts, named, chosen))
    runs = judge_settings.read([folder])
    chapters = outline.build(content)
    return page_of(content, chapters, packed, runs=runs, title=title, made="Made today.")


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.ids = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.ids += [value for name, value in attrs if name == "id"]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return build(judge_workdirs.write_set(tmp_path_factory.mktemp("set")))


def test_every_section_is_there_once(page):
    found = Page(page)
    assert len(found.ids) == len(set(found.ids))
    sections = ("rates", "differences", "judges", "labels", "lengths", "signals", "questions")
    assert {*sections, "transcripts", "settings", "notes", "index", "items", "verdicts"} <= set(
        found.ids
    )
    assert set(re.findall(r'href="#(\w+)"', page)) <= set(found.ids)
    assert set(re.findall(r'element\("(\w+)"\)', page)) <= set(found.ids)


def test_nothing_is_fetched(page):
    assert "default-src 'none'" in page
    assert not re.search(r"""\b(src|url|@import)\s*[=(]|fetch\(|https?://(?!www.w3.org)""", page)


def test_no_name_becomes_markup(tmp_path):
    hostile = judge_workdirs.HOSTILE.replace("\u2028", " ")  # no name may hold that
    settings = {"systems": ["x", "y"], "items": {"b": ["1", "2"]}}
    verdict = judge_workdirs.a_verdict
    plain = build(judge_workdirs.write(tmp_path / "a", verdict, **settings))
    names = {"references": [hostile], "judges": [hostile + "j"]}
    odd = build(
        judge_workdirs.write(tmp_path / "b", verdict, **settings, **names), systems={"x": hostile}
    )
    assert set(Page(odd).tags) == set(Page(plain).tags)
    assert Page(odd).tags.count("script") == Page(plain).tags.count("script")


def test_a_sample_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(transcripts, "BLOCK_ITEMS", 1)
    folder = judge_workdirs.write(tmp_path, lambda r: "tie", items={"b": ["1", "2", "3"]})
    assert "A random sample of 1 of 3 items is included" in build(folder, max_bytes=1)


def test_what_a_reader_must_know_comes_first(tmp_path):
    """A judge that takes the first answer, invalid verdicts, and references that are cut."""

    def first(record):
        if record["id"] == "1":
            return "invalid"
        return "model" if record["order"] == "model_first" else "reference"

    long = "word " * 200

    def text(generator, name):
        return long if generator == "gpt-4" else "" if name == "2" else "Short."

    folder = judge_workdirs.write(tmp_path, first, items={"b": ["1", "2", "3"]}, text=text)
    outputs = folder / "outputs.jsonl"
    lines = outputs.read_text().replace('"stop"', '"length"').splitlines(keepends=True)
    empty = [
        line.replace('"length"', '"too_long"') if '"output": ""' in line else line for line in lines
    ]
    outputs.write_text("".join(empty))
    warnings = re.findall(r"<p class=warning>(.*?)</p>", build(folder))
    assert warnings == [
        "j: 2 of 6 verdicts are invalid.",
        "j names the first answer in 100 % of its decisions.",
        "References that appear truncated, which favours the models: gpt-4 on b: 3 of 3.",
        "Answers of systems that appear truncated, which counts against them: ours on b: 2 of 3.",
        "Empty answers, judged as they are: ours on b: 1 of 3 (1 because the prompt is too long).",
    ]
