"""Figures of a report."""

import dataclasses

import pytest

from common.reports.drawing import Polygon, Text
from evaluation.judging import reading, workdirs
from evaluation.judging.verdicts import Matchup
from evaluation.reporting import figures
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


def tips(figure):
    return [s.tip for d in figure.drawings for s in d.shapes if isinstance(s, Polygon) and s.tip]


def test_which_there_are(measured):
    found = figures.build(measured, NAMES)
    each = ("win_rates", "backbones", "comparisons", "difficulty")
    of_judges = {f"{name}-{judge}" for name in each for judge in ("strict", "lenient_gpt")}
    assert set(found) == of_judges | {"judges", "position", "lengths"}
    assert not any("backbones" in name for name in figures.build(measured, PLAIN))


def test_a_bar_for_every_rate(measured):
    found = figures.build(measured, PLAIN)["win_rates-strict"]
    assert [drawing.title for drawing in found.drawings] == ["heart (12 items)", "lung (4 items)"]
    rate = measured.rates[Matchup("strict", "heart", "gpt-4", "ours-7b")].rate
    (tip,) = [t for t in tips(found) if t.startswith("ours-7b against gpt-4") and "12" in t]
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
    heart, lung = figures.build(results, {"ours": System("ours")})["win_rates"].drawings
    colours = [
        [s.fill for s in d.shapes if isinstance(s, Polygon) and s.tip] for d in (heart, lung)
    ]
    assert colours == [["series0", "series1", "muted"], ["series1"]]
    assert lung.title == "lung (1 items), against gpt-4"


def test_backbones_are_groups_of_methods(measured):
    found = figures.build(measured, NAMES)["backbones-strict"]
    assert sum(tip.startswith("Ours on LLaMA-13B") for tip in tips(found)) == 2
    assert not any("Theirs" in tip for tip in tips(found))


def test_a_difference_has_opposite_signs_on_both_sides(measured):
    found = figures.build(measured, PLAIN)["comparisons-strict"].drawings[0]
    numbers = [s.text for s in found.shapes if isinstance(s, Text) and s.text[0] in "+−0"]
    assert len(numbers) == 6
    assert numbers.count("0") % 2 == 0
    assert sorted(n[1:] for n in numbers if n[0] == "+") == sorted(
        n[1:] for n in numbers if n[0] == "−"
    )


def test_differences_state_their_number_of_items(measured):
    title = figures.build(measured, PLAIN)["comparisons-strict"].drawings[0].title
    benchmark = title.split(" (")[0]
    items = [found.items for found in measured.differences["strict", benchmark, AVERAGE].values()]
    every = measured.benchmarks[benchmark].items
    assert min(items) < every, "some verdicts are invalid"
    assert f"{max(items)} of {every} items)" in title and f"pairs on {min(items)}" in title


def test_positions_add_up(measured):
    (drawing,) = figures.build(measured, PLAIN)["position"].drawings
    assert len([s for s in drawing.shapes if isinstance(s, Polygon) and s.tip]) == 2 * 4


def test_more_judges_than_colours(measured):
    judge = measured.judges["strict"]
    many = dataclasses.replace(measured, judges={f"j{i}": judge for i in range(7)})
    with pytest.raises(ValueError, match="7 judges do not fit in a figure; report at most 6"):
        figures.build(many, PLAIN)


def test_png_and_svg_of_each(tmp_path, measured):
    found = {"position": figures.build(measured, PLAIN)["position"]}
    assert figures.write(tmp_path, found) == set()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["position.png", "position.svg"]


def test_the_tip_of_an_average_counts_the_valid_items():
    rate = WinRate(9, 7, 0.5, 0.4, 0.6, 0.4, 0.6)
    average = figures.rate_bar(rate, "x", AVERAGE)
    assert average.tip.endswith("9 items, 7 of them valid against all references")
    assert figures.rate_bar(rate, "x", "gpt-4").tip.endswith("7 items, 2 more invalid")
