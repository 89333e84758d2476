"""The page: every number is stats.json's, everything is escaped, nothing is fetched."""

import re
from html.parser import HTMLParser

from datagen.analysis import page as stats_page
from tests.datagen.analysis.test_measures import SETS, measure, record

HOSTILE = '<script>alert("x")</script> & <b>'


class Page(HTMLParser):
    """Tags, the rows of tables and the tips of shapes."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.rows: list[list[str]] = []
        self.tips: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data
        if self.open and self.open[-1] == "title":
            self.tips.append(data)


def test_every_row_has_one_text_a_set_or_is_a_heading():
    rows = stats_page.summary_rows(measure())
    assert {len(values) for _, values in rows} == {0, len(SETS)}
    assert len({label for label, _ in rows}) == len(rows)


def test_numbers_of_the_page_are_those_of_the_stats():
    stats = measure()
    page = Page(stats_page.page(stats))
    rows = {row[0]: row[1:] for row in page.rows}
    sets = stats["sets"].values()
    assert rows["Records"] == [str(s["records"]) for s in sets] == ["3", "1"]
    assert rows["Unique instructions"] == ["2 (66.7 %)", "1 (100 %)"]
    assert rows["With root verb and object"] == ["2 (66.7 %)", "1 (100 %)"]
    assert rows["Entropy of the pairs (bits)"] == ["0", "0"]
    assert "Rewrite | A: 2 (66.7 %)" in page.tips
    assert "write note: 2 (100 %)" in page.tips
    counted = dict.fromkeys(stats["sets"], 0)
    for tip in page.tips:
        if found := re.fullmatch(r".* ROUGE-L F \| (\w): ([\d,]+) \(.*\)", tip):
            counted[found.group(1)] += int(found.group(2))
    assert counted == {name: s["nearest"]["queries"] for name, s in stats["sets"].items()}


def test_spellings_and_missing_labels_are_told():
    page = stats_page.page(measure())
    assert "Rewrite Task 1; Rewrites 1" in page
    assert "without topic: A 2, B 1" in page


def test_nothing_of_a_text_becomes_markup():
    hostile = [record(HOSTILE, type=HOSTILE, topic=HOSTILE, view=HOSTILE)] * 2
    text = stats_page.page(measure({HOSTILE: hostile}))
    plain = stats_page.page(measure({"A": [record("x", type="x", topic="x", view="x")] * 2}))
    assert set(Page(text).tags) == set(Page(plain).tags)
    assert not {"script", "b"} & set(Page(text).tags)
    assert "alert" in text


def test_nothing_is_fetched():
    text = stats_page.page(measure())
    assert "default-src 'none'" in text and "script-src 'none'" in text
    assert not re.search(r"""(\bsrc|href|url|@import)\s*[=(]|https?://""", text)


def test_the_tail_of_500_topics_is_one_bar_and_no_count_vanishes():
    records = [record(f"Explain {i}.", topic=f"Topic {i}" * 20) for i in range(500)]
    rows = stats_page.label_rows(measure({"A": [*records, records[7]]}), "topic")
    assert rows[-1] == ("other (488)", [488])
    assert rows[0] == ("Topic 7" * 20, [2])
    assert sum(count for _, (count,) in rows) == 501


def test_a_set_without_pairs_and_labels_still_has_a_page():
    stats = measure({"A": [record("什么?")], "B": SETS["B"]})
    text = stats_page.page(stats)
    assert "No pair in: A." in text
    assert "no labels" in text


def test_the_default_threshold_is_no_claim_about_the_sets():
    text = stats_page.page(measure())
    assert "F = 0.7" in text and "filter:" not in text
    assert "0.7 is the default threshold of datagen.tasks and datagen.dedup" in text
