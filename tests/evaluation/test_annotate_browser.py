"""The annotators' page in a real browser: keys, storage, export, import, and back into a report."""

import json
import time

import numpy as np
import pytest

from evaluation.annotation import exports, page
from evaluation.annotation.candidates import draw, from_judgements
from evaluation.annotation.pairs import read_key
from evaluation.judgements import reading, workdirs
from evaluation.scoring import score
from tests.support import annotated, browser

pytestmark = pytest.mark.skipif(
    not browser.find(), reason="no Chromium: install the package chromium (apt install chromium)"
)
READY = "document.documentElement.dataset.ready == 'true'"
PAIR = "document.documentElement.dataset.pair"
CHOSEN = "[...document.querySelectorAll('input:checked')].map(e => e.name + ' ' + e.value)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A page whose texts hold markup, and no exports."""
    folder = annotated.write(tmp_path_factory.mktemp("set"), seed=7, count=8)
    path = folder / "work" / "outputs.jsonl"
    path.write_text(path.read_text().replace("ours on", "<b onclick=alert(1)>ours</b> on"))
    for name in ("lee", "patel"):
        (folder / "page" / f"{name}.json").unlink()
    verdicts, _ = reading.read([folder / "work"])
    candidates = from_judgements(verdicts, workdirs.read([folder / "work"], verdicts), [], [])
    pairs = draw(candidates, set(), {"heart": 8}, 7)
    key = annotated.assign(pairs, ["lee", "patel"], 2, 7)
    (folder / "page" / "key.json").write_text(json.dumps(key.record()))
    (folder / "page" / "annotate.html").write_text(page.build(key, pairs), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def opened(tmp_path_factory, folder):
    with browser.Browser(tmp_path_factory.mktemp("profile")) as window:
        window.size(1280, 900)
        window.send("Page.setDownloadBehavior", behavior="allow", downloadPath=str(folder / "page"))
        window.open((folder / "page" / "annotate.html").as_uri())
        window.wait_for(READY)
        yield window
        assert window.problems == [], "of all that the tests of this module did"


def press(window, *keys):
    for key in keys:
        window.send("Input.dispatchKeyEvent", type="keyDown", key=key, text=key)
        window.send("Input.dispatchKeyEvent", type="keyUp", key=key)


def click(window, name):
    window.run(f"document.getElementById('{name}').click()")


def enter(window, name):
    window.run(
        "[...document.querySelectorAll('#annotators button')]"
        f".find(e => e.textContent == '{name}').click()"
    )


def exported(folder, window, annotator):
    """The file that a click exports, once the browser has written it."""
    click(window, "export")
    end = time.monotonic() + browser.SECONDS
    while time.monotonic() < end:
        found = list((folder / "page").glob(f"{annotator}-*.json"))
        if found and not list((folder / "page").glob("*.crdownload")):
            return found[0]
        time.sleep(0.02)
    raise TimeoutError("nothing was exported")


def test_what_people_press_comes_back_as_their_verdicts(opened, folder):
    """Lee answers by keys, Patel by clicks; the report reads both exports."""
    key = read_key(folder / "page" / "key.json")
    enter(opened, "lee")
    for _ in range(8):
        shown = key.assignments[opened.run(PAIR)]
        mine = shown.first == "model"
        press(opened, "1" if mine else "3", "w", "d" if mine else "a", "u")
    assert "8 of 8 finished" in opened.run("document.getElementById('progress').textContent")
    exported(folder, opened, "lee")
    click(opened, "leave")
    enter(opened, "patel")
    assert opened.run(CHOSEN) == [], "nothing of another annotator"
    for place in range(8):
        if place == 3:
            opened.run("document.querySelector('#preference [value=\"cannot judge\"]').click()")
            assert opened.run("document.querySelector('#correctness input').disabled")
        else:
            for name in ("preference", "correctness", "helpfulness"):
                opened.run(f"document.querySelector('#{name} [value=equal]').click()")
        click(opened, "next")
    opened.run("document.getElementById('comment').focus()")
    press(opened, "n", "1")
    typed = opened.run("document.getElementById('comment').value")
    assert typed == "n1", "no shortcut while typing"
    exported(folder, opened, "patel")
    labels = exports.load([str(folder / "page")])
    found, people = reading.read([folder / "work"], labels.sources["preference"])
    labels.require_same_texts(workdirs.read([folder / "work"], found))
    by_person = {
        matchup.judge: score.item_scores(score.item_bounds(table))
        for matchup, table in people.tables.items()
    }
    assert np.nansum(by_person["human/lee"]) == 8
    assert np.nansum(by_person["human/patel"]) == 7 / 2
    helped = reading.read_people(labels.sources["helpfulness"], found)
    (lee,) = [table for matchup, table in helped.tables.items() if matchup.judge == "human/lee"]
    assert np.nansum(score.item_scores(score.item_bounds(lee))) == 0
    sources = labels.sources["preference"]
    assert [judged.raw for one in sources for judged in one.judgements].count("n1") == 1


def test_answers_survive_the_browser_and_move_to_another(opened, folder, tmp_path):
    """Reloaded, forgotten and imported again; a file of another page or person is refused."""

    def again():
        opened.open("about:blank#")
        opened.open((folder / "page" / "annotate.html").as_uri())
        opened.wait_for(READY)

    again()
    enter(opened, "lee")
    assert len(opened.run(CHOSEN)) == 3
    (mine,) = (folder / "page").glob("lee-*.json")
    mine = mine.rename(tmp_path / mine.name)
    before = json.loads(mine.read_text())["answers"]
    opened.run("localStorage.clear()")
    again()
    enter(opened, "lee")
    assert opened.run(CHOSEN) == []
    press(opened, "2")
    first = opened.run(PAIR)

    def bring(path):
        opened.run("delete document.documentElement.dataset.imported")
        found = opened.send("Runtime.evaluate", expression="document.getElementById('import')")
        opened.send(
            "DOM.setFileInputFiles", files=[str(path)], objectId=found["result"]["objectId"]
        )
        opened.wait_for("!document.getElementById('problem').hidden")
        text = opened.run("document.getElementById('problem').textContent")
        opened.run("document.getElementById('problem').hidden = true")
        return text

    (other,) = (folder / "page").glob("patel-*.json")
    assert "has the answers of patel, not of lee" in bring(other)
    wrong = tmp_path / "wrong.json"
    wrong.write_text('{"form": "alpacare-annotations-1", "page": "x"}')
    assert "was not exported from this page" in bring(wrong)
    wrong.write_text("{")
    assert "is not a whole JSON file" in bring(wrong)
    assert "7 of 8 answers are new or later" in bring(mine)
    after = json.loads(exported(folder, opened, "lee").read_text())["answers"]
    assert after[first]["preference"] == "equal", "the later one stays"
    del before[first], after[first]
    assert after == before


def test_on_a_phone_everything_is_within_reach(opened):
    opened.size(390, 844, phone=True)
    assert opened.run("document.documentElement.scrollWidth") <= 390
    sizes = opened.run("[...document.querySelectorAll('.choice')].map(e => e.offsetHeight)")
    assert min(sizes) >= 40
    opened.size(1280, 900)


def test_texts_stay_texts_and_names_stay_hidden(opened, folder):
    assert opened.run("document.querySelectorAll('#work b').length") == 0
    source = (folder / "page" / "annotate.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in source
    for name in ("gpt-4", "human", "heart"):
        assert name not in source.replace("gpt-4 on", ""), "but where an answer says so"
