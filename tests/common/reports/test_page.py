"""The frame of a page, its tables and numbers: any text may stand in them."""

import base64
import hashlib

import pytest

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


@pytest.mark.parametrize("script", ["", "alert('ä')"])
def test_a_page_runs_its_own_script_only(script):
    text = page.document("a", "<p>b", script=script)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed = f"'sha256-{digest}'" if script else "'none'"
    assert "default-src 'none'" in text and f'; script-src {allowed}">' in text
    assert text.count("<script>") == bool(script)
