"""The page in a real browser: filters, search, a transcript, links, a phone, and no error."""

import numpy as np
import pytest

from evaluation.judgements.verdicts import VerdictCode
from evaluation.scoring import score
from evaluation.statistics import agreement
from tests.evaluation.reporting import test_page
from tests.support import browser, judge_workdirs

pytestmark = pytest.mark.skipif(
    not browser.find(), reason="no Chromium: install the package chromium (apt install chromium)"
)
ROOT = "document.documentElement.dataset"
COUNT = "document.getElementById('list').children.length"
SHOWN = "document.getElementById('shown').textContent"


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    folder = judge_workdirs.write_set(tmp_path_factory.mktemp("set"))
    path = folder / "report.html"
    path.write_text(test_page.build(folder), encoding="utf-8")
    return path.as_uri()


@pytest.fixture(scope="module")
def page(tmp_path_factory, url):
    with browser.Browser(tmp_path_factory.mktemp("profile")) as opened:
        opened.size(1280, 900)
        opened.open(url)
        opened.wait_for(f"{ROOT}.ready == 'true'")
        yield opened
        assert opened.problems == [], "of all that the tests of this module did"


def choose(page, **values):
    """Sets controls and waits until the list follows."""
    before = page.run(f"Number({ROOT}.searches)")
    for name, value in values.items():
        kind = "input" if name == "query" else "change"
        field = "checked" if isinstance(value, bool) else "value"
        text = str(value).lower() if isinstance(value, bool) else repr(value)
        page.run(
            f"(() => {{ const e = document.getElementById('{name}'); e.{field} = {text};"
            f"e.dispatchEvent(new Event('{kind}')) }})()"
        )
    page.wait_for(f"Number({ROOT}.searches) >= {before + len(values)}")


def label(page, control, text):
    """The value of an option, by its text."""
    return page.run(
        f"[...document.getElementById('{control}').options].find(o => o.text == '{text}').value"
    )


EVERYTHING = {"benchmark": "", "outcome": "", "query": "", "deep": False}


@pytest.fixture
def fresh(page):
    choose(page, **EVERYTHING)
    first = {
        name: label(page, name, text)
        for name, text in (("system", "ours-7b"), ("reference", "gpt-4"), ("judge", "strict"))
    }
    choose(page, **first)
    return page


def test_the_list_holds_every_item_and_follows_the_benchmark(fresh):
    assert fresh.run(COUNT) == 16
    choose(fresh, benchmark=label(fresh, "benchmark", "lung"))
    assert fresh.run(COUNT) == 4


def test_filters_agree_with_the_verdicts(fresh):
    found, *_ = judge_workdirs.read_set()
    tables = [found.tables["strict", name, "gpt-4", "ours-7b"] for name in ("heart", "lung")]
    pairs = [tuple(pair) for table in tables for pair in table.tolist()]
    _, model, reference, tie, invalid = VerdictCode
    outcomes = {
        "won": [(model, model)],
        "lost": [(reference, reference)],
        "tie": [(tie, tie)],
        "first": [(model, reference)],
        "second": [(reference, model)],
        "mixed": [p for p in set(pairs) if tie in p and invalid not in p and p != (tie, tie)],
        "invalid": [pair for pair in set(pairs) if invalid in pair],
    }
    for outcome, those in outcomes.items():
        choose(fresh, outcome=outcome)
        expected = sum(pairs.count(pair) for pair in those)
        assert fresh.run(COUNT) == expected, outcome
        badges = f"document.querySelectorAll('#list .badge.{outcome}').length"
        assert fresh.run(badges) == expected


def test_where_judges_differ(fresh):
    found, *_ = judge_workdirs.read_set()
    scores = [
        [
            score.item_scores(score.item_bounds(found.tables[judge, name, "gpt-4", "ours-7b"]))
            for name in ("heart", "lung")
        ]
        for judge in judge_workdirs.SET["judges"]
    ]
    one, other = (agreement.categories(np.concatenate(mine)) for mine in scores)
    choose(fresh, outcome="other")
    assert fresh.run(COUNT) == ((one != other) & (one >= 0) & (other >= 0)).sum() > 0


def test_search_in_questions_and_in_answers(fresh):
    choose(fresh, query="WHAT OF H11")
    assert fresh.run(COUNT) == 1
    choose(fresh, query="ours-7b on h3")
    assert fresh.run(COUNT) == 0
    choose(fresh, deep=True)
    assert fresh.run(COUNT) == 1
    fresh.run(
        "for (const text of ['on h4', '']) { document.getElementById('query').value = text;"
        "document.getElementById('query').dispatchEvent(new Event('input')) }"
    )
    fresh.run("new Promise(done => setTimeout(done, 100))")
    assert fresh.run(COUNT) == 16, "the last search counts, not the last to end"


def test_a_transcript_shows_both_answers_and_every_judge(fresh):
    choose(fresh, query="What of h1?")
    fresh.run("document.querySelector('#list button').click()")
    fresh.wait_for(f"{ROOT}.opened == 'h1'")
    text = fresh.run(SHOWN)
    assert judge_workdirs.HOSTILE in text, "shown as it is"
    assert "gpt-4 on h1." in text
    assert "Model first: " in text
    assert "strict says" in text
    assert "lenient/gpt says" in text
    assert fresh.run("document.querySelectorAll('#shown > p .badge').length") == 2
    assert fresh.run("document.title") == "Evaluation report"
    assert fresh.run("document.querySelectorAll('#shown script, #shown p > b').length") == 0


def test_next_and_previous(fresh):
    fresh.run("document.querySelectorAll('#list button')[1].click()")
    fresh.wait_for(f"{ROOT}.opened == 'h1'")
    fresh.run("document.getElementById('next').click()")
    fresh.wait_for(f"{ROOT}.opened == 'h2'")
    fresh.run("document.getElementById('previous').click()")
    fresh.wait_for(f"{ROOT}.opened == 'h1'")


def test_a_link_opens_its_transcript(page, url):
    page.open("about:blank#")
    page.open(f"{url}#lung/l2/theirs-7b/claude-2")
    page.wait_for(f"{ROOT}.ready == 'true'")
    assert page.run(f"{ROOT}.opened") == "l2"
    text = page.run(SHOWN)
    assert "theirs-7b on l2." in text
    assert "claude-2 on l2." in text


def test_a_link_within_the_page_and_one_that_is_none(page, url):
    page.open("about:blank#")
    page.open(f"{url}#%zz/l2/theirs-7b/claude-2")
    page.wait_for(f"{ROOT}.ready == 'true'")
    assert page.run(COUNT) == 16
    assert "does not contain the item" in page.run(SHOWN)
    page.run("location.hash = '#lung/l3/ours-13b/gpt-4'")
    page.wait_for(f"{ROOT}.opened == 'l3'")
    assert "ours-13b on l3." in page.run(SHOWN)


def test_on_a_phone_nothing_is_wider_than_the_screen(fresh):
    fresh.size(390, 844, phone=True)
    assert fresh.run("document.documentElement.scrollWidth") <= 390
    names = "[...document.querySelectorAll('#judges td:first-child')]"
    narrow = fresh.run(f"Math.min(...{names}.map(e => e.offsetWidth).filter(Boolean))")
    assert narrow > 100, "no name is broken at every letter"
    shrunk = (
        "[...document.querySelectorAll('svg')].filter(e => e.viewBox.baseVal.width > e.clientWidth)"
    )
    assert fresh.run(f"{shrunk}.length") == 0, "figures scroll rather than shrink their letters"
    fresh.run("document.querySelectorAll('details').forEach(e => e.open = true)")
    captions = (
        "[...document.querySelectorAll('figcaption')].map(e => e.getBoundingClientRect().right)"
    )
    assert fresh.run(f"Math.max(...{captions})") <= 390, "no caption scrolls out of sight"
    wide = (
        "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth + 1)"
    )
    shadows = f"{wide}.map(e => getComputedStyle(e).backgroundImage.split('gradient').length - 1)"
    found = fresh.run(shadows)
    assert found and set(found) == {4}, "what is wider than the screen shows it"
    fresh.run("document.querySelectorAll('details').forEach(e => e.open = false)")
    fresh.run("document.querySelectorAll('#list button')[1].click()")  # with a word of 200 letters
    fresh.wait_for("getComputedStyle(document.getElementById('view')).display == 'block'")
    assert fresh.run("getComputedStyle(document.getElementById('found')).display") == "none"
    assert fresh.run("document.documentElement.scrollWidth") <= 390
    fresh.run("document.getElementById('back').click()")
    assert fresh.run("getComputedStyle(document.getElementById('found')).display") != "none"
    fresh.size(1280, 900)


def test_on_paper_only_what_can_be_read(fresh):
    shown = "(id) => getComputedStyle(document.getElementById(id)).display != 'none'"
    fresh.send("Emulation.setEmulatedMedia", media="print")
    assert [fresh.run(f"({shown})('{name}')") for name in ("rates", "found")] == [True, False]
    assert fresh.run("getComputedStyle(document.querySelector('.controls')).display") == "none"
    fresh.run("document.querySelectorAll('#list button')[1].click()")
    fresh.wait_for(f"{ROOT}.opened == 'h1'")
    fresh.size(700, 1000)  # as wide as paper: answers stay side by side
    columns = "getComputedStyle(document.querySelector('.sides')).gridTemplateColumns"
    assert len(fresh.run(columns).split()) == 2
    fresh.size(1280, 900)
    paper = fresh.send("Page.printToPDF", printBackground=True)["data"]
    assert paper.startswith("JVBERi0")  # %PDF-
    fresh.send("Emulation.setEmulatedMedia", media="")


def test_no_other_script_runs(page):
    """Markup that should never get into the page, put there: the page's policy stops it."""
    page.run(
        "document.body.insertAdjacentHTML('beforeend', "
        '\'<p onclick="window.hacked = true" id=odd>x</p><a href="javascript:hacked=1">y</a>\');'
        "document.getElementById('odd').click(); document.querySelector('#odd + a').click()"
    )
    page.wait_for("new Promise(done => setTimeout(() => done(true), 50))")
    assert page.run("window.hacked") is None
    assert len(page.problems) == 2
    assert all("Content Security Policy" in problem for problem in page.problems)
    page.problems.clear()
    page.run("document.querySelectorAll('#odd, #odd + a').forEach(e => e.remove())")


def test_an_error_would_be_noticed(page):
    page.run("console.error('one'); setTimeout(() => { throw Error('two') })")
    page.wait_for("new Promise(done => setTimeout(() => done(true), 10))")
    one, two = page.problems
    page.problems.clear()
    assert "one" in one
    assert "two" in two
