"""The chat page in a browser: a conversation, the text that the model reads, errors, a phone."""

import base64
import os
from pathlib import Path

import pytest

from tests.support import browser
from tests.support.served import ServerThread

pytestmark = [
    pytest.mark.usefixtures("quickly_compiled"),
    pytest.mark.skipif(not browser.find(), reason="needs Chromium or Chrome"),
]

NO_ANSWER = """fetch = (path, {signal}) => new Promise((_, fail) =>
signal.addEventListener("abort", () => fail(signal.reason))); 0"""

SAY = """(() => {{
const box = byId("question"), enter = {{key: "Enter", cancelable: true}};
box.value = {question!r};
box.dispatchEvent(new KeyboardEvent("keydown", enter));
}})()"""


def say(page: browser.Browser, question: str, answers: int) -> str:
    """Sends a question, and returns the answer once it is complete."""
    page.run(SAY.format(question=question))
    page.wait_for(f"document.querySelectorAll('.assistant').length == {answers} && !running")
    return page.run("[...document.querySelectorAll('.assistant .text')].at(-1)?.textContent")


def picture(page: browser.Browser, name: str) -> None:
    """Kept in the folder that ALPACARE_PICTURES names, for people to look at."""
    if folder := os.environ.get("ALPACARE_PICTURES"):
        data = page.send("Page.captureScreenshot", captureBeyondViewport=False)["data"]
        (Path(folder) / name).write_bytes(base64.b64decode(data))


@pytest.mark.parametrize("width, phone", [(1280, False), (390, True)], ids=["desk", "phone"])
def test_a_conversation(served, tmp_path, width, phone):
    with browser.Browser(tmp_path) as page:
        page.size(width, 500, phone=phone)
        page.open(served.url)
        assert "Not medical advice" in page.run("document.body.innerText")
        page.run("byId('limit').value = 12")
        first = say(page, "what is fever", 1)
        assert first == served.ask("what is fever", max_tokens=12).choices[0].message.content
        assert say(page, "why <b>", 2) != first
        assert page.run("document.querySelector('.user b')") is None, "texts are texts"
        end = "byId('turns').lastChild.getBoundingClientRect().bottom"
        hidden = f"{end} > document.querySelector('.ask').getBoundingClientRect().top + 1"
        assert not page.run(hidden), "the page follows an answer"
        page.run("document.querySelectorAll('details')[2].open = true")
        page.wait_for("document.querySelector('pre')?.textContent.startsWith('<s>Below is')")
        prompt = page.run("document.querySelector('pre').textContent")
        assert first in prompt and "why <b>" in prompt
        overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert page.run(overflow) <= 0
        picture(page, f"chat-{width}.png")
        page.run("byId('system').value = 'Be brief'")
        say(page, "a", 3)
        error = page.run("document.querySelector('.error').textContent")
        assert "no place for a system prompt" in error
        assert page.run("byId('question').value") == "a", "it can be sent again"
        picture(page, f"error-{width}.png")
        page.run(NO_ANSWER)
        page.run(SAY.format(question="b"))
        page.wait_for("running !== null")
        page.run("byId('stop').click()")
        page.wait_for("!running")
        assert page.run("byId('turns').lastChild.textContent") == "Stopped."
        assert page.run("byId('question').value") == "b" and page.run("messages.length") == 4
        page.run("byId('again').click()")
        assert page.run("byId('turns').childElementCount") == 0
        blocked = [text for text in page.problems if "Content Security" in text]
        assert blocked == []


def test_a_page_of_a_server_with_a_key_asks_for_it(source, engine, tmp_path):
    served = ServerThread(source, engine, key="a-key-of-no-one-0123456789")
    try:
        with browser.Browser(tmp_path) as page:
            page.open(served.url)
            say(page, "why", 1)
            assert "API key is missing" in page.run("document.querySelector('.error').textContent")
            page.run(f"byId('key').value = {served.key!r}; byId('limit').value = 3")
            assert say(page, "why", 2)
            assert page.run("JSON.stringify({...localStorage, ...sessionStorage})") == "{}"
    finally:
        served.stop()
