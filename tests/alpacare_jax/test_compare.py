"""alpacare compare: runs side by side on a page."""

import re
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY
from tests.support import commands
from tests.support.run_folders import event, write

IMPORTED = "import sys, alpacare_jax.compare; print(*sorted(sys.modules))"


def compare(*args) -> subprocess.CompletedProcess:
    return commands.run("alpacare_jax.compare", *args)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A folder of eight runs, one of them unfinished; and a file and a folder that are no runs."""
    folder = tmp_path_factory.mktemp("sweep")
    for i in range(1, 8):
        write(folder / f"learning_rate={i}e-3", rate=1e-3 * i, log_every=i)
    stopped = [event("stopped", 12, "stopped by SIGTERM")]
    write(folder / "learning_rate=8e-3", steps=12, rate=8e-3, events=stopped)
    (folder / "sweep.json").write_text("{}")
    (folder / "notes").mkdir()
    return folder


def test_a_sweep_is_a_table_of_what_differs_and_overlaid_curves(sweep, tmp_path):
    done = compare(sweep, f"--output={tmp_path}/all.html")
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("8 runs: ")
    text = (tmp_path / "all.html").read_text()
    assert "<h1>8 training runs</h1>" in text and "1 of them unfinished" in text
    head = re.findall(r"<th scope=col>([^<]*)", text)
    assert "learning_rate" in head, "it differs"
    assert not {"epochs", "schedule", "log_every"} & {*head}, "the same, or of no effect"
    names = re.findall(r"</span>([^<]*)</td>", text)
    assert names[0] == "learning_rate=7e-3" and len(names) == 8, "the best first"
    assert "learning_rate=8e-3 (stopped at step 12)" in names
    assert "<b>2.2000</b>" in text, "the best held-out loss"
    assert len(re.findall("<figure[^>]*><h3", text)) == 5
    svg = (tmp_path / "all.svg").read_text()
    assert "learning_rate=7e-3" in svg and svg.count("other runs") == 5, "six have colours"


def test_runs_of_one_name_are_named_by_their_path(tmp_path):
    for parent in ("a", "b"):
        write(tmp_path / parent / "run")
    done = compare(
        tmp_path / "a/run", tmp_path / "b", tmp_path / "a", "--output", tmp_path / "c.html"
    )
    assert done.returncode == 0 and done.stderr.startswith("2 runs: "), done.stderr
    text = (tmp_path / "c.html").read_text()
    assert f"{tmp_path}/a/run" in text and f"{tmp_path}/b/run" in text


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "error: give one or several workdirs of train, or the folder of a sweep"),
        (["nowhere"], "error: nowhere: no such folder; give workdirs of train"),
        (["docs"], "error: docs holds no training run; .*"),
        (["docs", "--output=x.txt"], "error: --output x.txt must end in .html"),
        (["--colour=red"], "error: Unknown command line flag 'colour' .*"),
        (["s3://x/y"], "error: s3://x/y: give a local folder or gs://BUCKET/..."),
    ],
)
def test_bad_arguments_end_in_one_line(args, said):
    done = compare(*args)
    assert done.returncode in (1, 2)
    assert re.fullmatch(said + "\n", done.stderr)


def test_a_damaged_run_is_named(tmp_path):
    folder = write(tmp_path / "a")
    (folder / "run.json").write_text('{"config": ')
    done = compare(folder, f"--output={tmp_path}/c.html")
    assert done.returncode == 1
    assert re.fullmatch(rf"error: {folder}/run\.json is damaged.*\n", done.stderr)
    assert not (tmp_path / "c.html").exists()


def test_it_starts_without_jax():
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert not loaded & {"jax", "flax", "orbax", "matplotlib"}
