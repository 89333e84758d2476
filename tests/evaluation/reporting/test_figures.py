"""Figures of a report."""

import pytest

from common.reports.drawing import Drawing, Polygon, Text
from evaluation.judgements import reading, workdirs
from evaluation.judgements.verdicts import Matchup
from evaluation.reporting import figures, outline
from evaluation.reporting.content import ReportContent, ReportFigure
from evaluation.reporting.systems import System
from evaluation.scoring.measurement import measure
from evaluation.scoring.results import AVERAGE
from evaluation.scoring.score import WinRate
from tests.support import judge_workdirs

NAMES = {
    "ours-7b": System("Ours", "LLaMA-7B"),
    "ours-13b": System("Ours", "LLaMA-13B"),
    "theirs-7b": System("Theirs"),
}
PLAIN = {name: System(name) for name in NAMES}


@pytest.fixture(scope="module")
def measured():
    return judge_workdirs.measure_set()


def drawn(results, systems):
    chapters = outline.build(ReportContent(results, systems))
    return {name: figure for chapter in chapters for name, figure in chapter.figures.items()}


def tips(figure):
    return [s.tip for d in figure.drawings for s in d.shapes if isinstance(s, Polygon) and s.tip]


def texts(drawing):
    return [shape for shape in drawing.shapes if isinstance(shape, Text)]


def test_which_there_are(measured):
    found = drawn(measured, NAMES)
    each = ("win_rates", "backbones", "backbones_by_reference", "comparisons", "difficulty")
    of_judges = {f"{name}-{judge}" for name in each for judge in ("strict", "lenient_gpt")}
    assert set(found) == of_judges | {"judges", "judges_by_reference", "position", "lengths"}
    assert not any("backbones" in name for name in drawn(measured, PLAIN))


def test_a_bar_for_every_rate(measured):
    found = drawn(measured, PLAIN)["win_rates-strict"]
    assert [drawing.title for drawing in found.drawings] == ["heart (12 items)", "lung (4 items)"]
    rate = measured.rates[Matchup("strict", "heart", "gpt-4", "ours-7b")].rate
    (tip,) = [t for t in tips(found) if t.startswith("ours-7b, gpt-4") and "12" in t]
    assert f"{100 * rate:.1f} %" in tip
    assert len(tips(found)) == 2 * 3 * 3


def test_a_reference_has_one_colour_in_all_panels(tmp_path):
    one = judge_workdirs.write(
        tmp_path / "one", lambda r: "tie", items={"heart": ["1"]}, references=["claude-2", "gpt-4"]
    )
    two = judge_workdirs.write(tmp_path / "two", lambda r: "tie", items={"lung": ["1"]})
    found, _ = reading.read([one, two])
    texts = workdirs.read([one, two], found)
    results = measure(found, None, texts, seed=0)
    heart, lung = drawn(results, {"ours": System("ours")})["win_rates"].drawings
    colours = [
        [s.fill for s in d.shapes if isinstance(s, Polygon) and s.tip] for d in (heart, lung)
    ]
    assert colours == [["series0", "series1", "muted"], ["series1"]]
    assert lung.title == "lung (1 items), against gpt-4"


def test_backbones_are_groups_of_methods(measured):
    found = drawn(measured, NAMES)["backbones-strict"]
    assert sum(tip.startswith("LLaMA-13B, Ours") for tip in tips(found)) == 2
    assert not any("Theirs" in tip for tip in tips(found))


def test_a_difference_has_opposite_signs_on_both_sides(measured):
    found = drawn(measured, PLAIN)["comparisons-strict"].drawings[0]
    numbers = [
        s.text.rstrip("*") for s in found.shapes if isinstance(s, Text) and s.text[0] in "+−0"
    ]
    assert len(numbers) == 6
    assert numbers.count("0") % 2 == 0
    assert sorted(n[1:] for n in numbers if n[0] == "+") == sorted(
        n[1:] for n in numbers if n[0] == "−"
    )


def test_differences_state_their_number_of_items(measured):
    title = drawn(measured, PLAIN)["comparisons-strict"].drawings[0].title
    benchmark = title.split(" (")[0]
    items = [found.items for found in measured.differences["strict", benchmark, AVERAGE].values()]
    every = measured.benchmarks[benchmark].items
    assert min(items) < every, "some verdicts are invalid"
    assert f"{max(items)} of {every} items)" in title and f"pairs on {min(items)}" in title


def test_positions_add_up(measured):
    (drawing,) = drawn(measured, PLAIN)["position"].drawings
    assert len([s for s in drawing.shapes if isinstance(s, Polygon) and s.tip]) == 2 * 4


def test_figures_split_where_names_are_more_than_colours_or_rows_than_room(tmp_path):
    """Ten references, nine judges, 20 systems: every rate is drawn, and every name is there."""
    names = {
        "references": [f"reference {i}" for i in range(10)],
        "judges": [f"judge {i}" for i in range(9)],
        "systems": [f"system {i}" for i in range(20)],
    }

    def verdict(record):
        return "model" if judge_workdirs.a_verdict(record) == "model" else "reference"

    folder = judge_workdirs.write(tmp_path, verdict, items={"b": ["1"]}, **names)
    found, _ = reading.read([folder])
    results = measure(found, None, workdirs.read([folder], found), seed=0)
    figures_ = drawn(results, {name: System(name) for name in results.systems})
    rates = figures_["win_rates-judge_0"]
    own = [t for t in tips(rates) if "average" not in t]
    assert len(own) == len(set(own)) == 10 * 20
    for figure in (rates, figures_["judges"]):
        for one in figure.drawings:
            colours = {s.fill for s in one.shapes if isinstance(s, Polygon) and not s.tip}
            legend = [s for s in one.shapes if isinstance(s, Polygon) and not s.tip]
            assert len(colours) == len(legend), "no two names of a drawing share a colour"
        titles = [one.title for one in figure.drawings]
        assert titles[0].endswith(f"part 1 of {len(titles)}")
    heats = figures_["comparisons-judge_0"].drawings
    assert len(tips(figures_["comparisons-judge_0"])) == 20 * 19
    assert len(heats) == 2
    everything = {s.text for f in figures_.values() for d in f.drawings for s in texts(d)}
    assert {name for kind in names.values() for name in kind} <= everything


def test_a_figure_that_is_too_high_has_several_files(tmp_path):
    block = Drawing("T", 360, 0.7 * figures.FILE_HEIGHT, [])
    figures.write(tmp_path, {"x": ReportFigure("", "", [block] * 3, columns=1)})
    assert sorted(p.stem for p in tmp_path.glob("*.svg")) == ["x-1", "x-2", "x-3"]


def test_png_and_svg_of_each(tmp_path, measured):
    found = {"position": drawn(measured, PLAIN)["position"]}
    assert figures.write(tmp_path, found) == set()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["position.png", "position.svg"]


def test_the_tip_of_an_average_counts_the_valid_items():
    rate = WinRate(9, 7, 0.5, 0.4, 0.6, 0.4, 0.6)
    average = figures.rate_bar(rate, "x", AVERAGE)
    assert average.tip.endswith("9 items, 7 of them valid against all references")
    assert figures.rate_bar(rate, "x", "gpt-4").tip.endswith("7 items, 2 more invalid")
