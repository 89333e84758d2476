"""A run's page and a comparison in a real browser: a phone, tips, the policy, and no error."""

import pytest
from etils import epath

from alpacare_jax.reporting import comparison, run_files, run_page
from tests.support import browser
from tests.support.run_folders import TIME, event, sample, write

pytestmark = pytest.mark.skipif(
    not browser.find(), reason="no Chromium: install the package chromium (apt install chromium)"
)
LONG = "unbroken" * 40


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    events = [sample(0, LONG), sample(20, "Gout."), event("failed", 20, f"loss nan: {LONG}")]
    write(folder / "learning_rate=1e-3,schedule=cosine", events=events)
    write(folder / "learning_rate=2e-3,schedule=cosine", steps=12, rate=2e-3, events=events[2:])
    runs = [run_files.read(epath.Path(path)) for path in sorted(folder.iterdir())]
    texts = [*(run_page.page(run, TIME.format(59)) for run in runs)]
    texts.append(comparison.page(runs, TIME.format(59)))
    paths = [folder / f"{i}.html" for i in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text, encoding="utf-8")
    return [path.as_uri() for path in paths]


def test_nothing_is_wider_than_a_phone_and_no_page_has_a_problem(pages, tmp_path_factory):
    with browser.Browser(tmp_path_factory.mktemp("profile")) as opened:
        for url in pages:
            for width, phone in ((1280, False), (390, True)):
                opened.size(width, 844, phone=phone)
                opened.open(url)
                assert opened.run("document.documentElement.scrollWidth") <= width, url
                assert opened.run("document.querySelectorAll('figure svg').length") == 5
            tips = "[...document.querySelectorAll('figure title')].map(e => e.textContent)"
            assert any(tip.startswith("step 10\n") for tip in opened.run(tips))
        assert opened.problems == []
