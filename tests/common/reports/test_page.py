"""The frame of a page, its tables and numbers: any text may stand in them."""

from common.reports import page
from common.reports.drawing import Drawing


def test_a_table_escapes_its_texts():
    text = page.table(["<a>"], [("<b>", ["<c>"]), ("<d>", [])], caption="<e>")
    assert [text.count(f"&lt;{letter}>".replace(">", "&gt;")) for letter in "abcde"] == [1] * 5
    assert "<b>" not in text


def test_a_title_and_a_label_are_escaped():
    text = page.document("<a>", page.panels([Drawing("<b>", 9, 9, [])]) + page.foldout("", "<c>"))
    assert not {f"<{letter}>" for letter in "abc"} & {text[i : i + 3] for i in range(len(text))}
    assert text.count("&lt;") == 4  # the title, the heading, the drawing's label, the summary
