"""Sweeps: their names, what is run and what is skipped, signals, and the table at the end."""

import dataclasses
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.parse
from pathlib import Path

import hypothesis
import jax
import pytest
from etils import epath
from hypothesis import assume, given
from hypothesis import strategies as st

from alpacare_jax.checkpoints import checkpoint, identity
from alpacare_jax.model import params
from alpacare_jax.model.config import VARIANTS
from common import sections
from configs import quickstart
from launch import sweep, sweep_results, sweep_runs
from tests.conftest import COMPILES_QUICKLY, LIMIT, REPOSITORY
from tests.support.training import make_corpus, settings

no_deadline = hypothesis.settings(deadline=None)  # no test asserts a time
CONFIG = sections.flatten(quickstart.get_config().to_dict())

SWEEPS = """
from configs.quickstart import get_config

def sweep(add):
    for learning_rate in (3e-4, 1e-4, 2e-4):
        add(**{"optimizer.learning_rate": learning_rate})

def with_failures(add):
    for seed in (1, 13, 2):
        add(**{"train.seed": seed})

def endless(add):
    add(**{"optimizer.learning_rate": 1e-3})
    add(**{"train.epochs": 99})
    add(**{"optimizer.learning_rate": 2e-3})

def empty(add):
    pass

def misspelt(add):
    add(**{"optimizer.learning_rate": 1e-3})
    add(**{"optimizer.learning_rat": 1e-3})

def undotted(add):
    add(learning_rate=1e-3)

def section(add):
    add(optimizer={})

def text_for_number(add):
    add(**{"train.epochs": "2"})

def fraction_for_whole(add):
    add(**{"train.epochs": 2.5})

def infinite(add):
    add(**{"optimizer.learning_rate": float("inf")})

def twice(add):
    add(**{"optimizer.learning_rate": 1.0, "train.seed": 3})
    add(**{"train.seed": 3, "optimizer.learning_rate": 1})

def default_again(add):
    add()
    add(**{"train.seed": 42})

def helper(values):
    pass
"""

# Stands in for training: goes on from the steps that are there, fails or waits where the flags of
# the run say so, and writes down that it was started.
STAND_IN = """
import json, os, pathlib, signal, sys, time

assert sys.argv[1:4] == ["python", "-m", "alpacare_jax.train"], sys.argv
flags = dict(arg.removeprefix("--").split("=", 1) for arg in sys.argv[4:])
workdir = pathlib.Path(flags["workdir"])
with open(os.environ["STARTED"], "a") as file:
    file.write(workdir.name + "\\n")
if flags.get("config.train.seed") == "13":
    print("error: out of luck", file=sys.stderr)
    print("", file=sys.stderr)
    sys.exit(3)
workdir.mkdir(parents=True, exist_ok=True)
rate = float(flags.get("config.optimizer.learning_rate", 1))
metrics = workdir / "metrics.jsonl"
done = len(metrics.read_text().splitlines()) if metrics.exists() else 0
record = {"config": {}, "end": None}
if "config.optimizer.learning_rate" in flags:
    record["config"] = {"optimizer": {"learning_rate": rate}}

def write_record():
    (workdir / "run.json").write_text(json.dumps(record))

def write(step):
    line = {"step": step, "loss": 10 * rate + 1 / step, "tokens_per_second": 100 * step}
    with open(metrics, "a") as file:
        file.write(json.dumps(line | {"seconds": 3.6, "eval_loss": 100 * rate}) + "\\n")

def stop(*_):
    time.sleep(0.3)
    write(done + 2)
    print("stopped by SIGTERM", file=sys.stderr)
    os._exit(0)

write_record()
if flags.get("config.train.epochs") == "99":
    signal.signal(signal.SIGTERM, stop)
    write(done + 1)
    while True:
        time.sleep(0.02)
for step in range(done + 1, 4):
    write(step)
record["end"] = "now"
write_record()
"""


class Sweeps:
    """A config file with the sweeps above, and the command on it."""

    def __init__(self, folder: Path):
        self.config = folder / "sweeps.py"
        self.config.write_text(SWEEPS)
        self.stand_in = folder / "stand_in.py"
        self.stand_in.write_text(STAND_IN)
        self.launcher = shlex.join([sys.executable, str(self.stand_in)])
        self.workdir = folder / "runs"
        self.log = folder / "started"

    @property
    def started(self) -> list[str]:
        return self.log.read_text().split() if self.log.exists() else []

    def start(self, sweep: str, *args: str, **env: str) -> subprocess.Popen:
        command = [
            *(sys.executable, "launch/sweep.py", f"--config={self.config}", f"--sweep={sweep}"),
            *(f"--workdir={self.workdir}", f"--launcher={self.launcher}", *args),
        ]
        clean = {k: v for k, v in os.environ.items() if k != "SLURM_ARRAY_TASK_ID"}
        return subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=clean | {"STARTED": str(self.log)} | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def __call__(self, sweep: str, *args: str, **env: str) -> tuple[int, str, str]:
        process = self.start(sweep, *args, **env)
        out, err = process.communicate(timeout=LIMIT)
        return process.returncode, out, err

    def rows(self) -> list[dict]:
        return json.loads((self.workdir / "sweep.json").read_text())["runs"]


@pytest.fixture
def sweeps(tmp_path) -> Sweeps:
    return Sweeps(tmp_path)


# Names.


def values_of(kind: type) -> st.SearchStrategy:
    floats = st.floats(allow_nan=False, allow_infinity=False)
    return {float: floats, int: st.integers(), bool: st.booleans(), str: st.text()}[kind]


OVERRIDES = st.fixed_dictionaries(
    {}, optional={key: values_of(type(value)) for key, value in CONFIG.items()}
)
FEW = st.sampled_from(sorted(CONFIG)).flatmap(
    lambda key: st.fixed_dictionaries({key: values_of(type(CONFIG[key]))})
)


@no_deadline
@given(OVERRIDES | FEW)
def test_names_are_safe_on_any_file_system(overrides):
    name = sweep_runs.pack(overrides, CONFIG)
    assert re.fullmatch(r"[A-Za-z0-9_.~%=,+-]{1,100}", name)
    assert name[0] not in ".-~"


def read_back(name: str) -> dict:
    overrides = {}
    for item in name.split(","):
        short, text = item.split("=")
        (key,) = (key for key in CONFIG if key == short or key.endswith("." + short))
        kind, text = type(CONFIG[key]), urllib.parse.unquote(text)
        overrides[key] = {"True": True, "False": False}[text] if kind is bool else kind(text)
    return overrides


@no_deadline
@given(FEW | st.lists(FEW, min_size=2, max_size=3))
def test_a_name_can_be_read_back_so_no_other_run_has_it(overrides):
    if isinstance(overrides, list):
        overrides = {key: value for one in overrides for key, value in one.items()}
    name = sweep_runs.pack(overrides, CONFIG)
    assume("+" not in name)  # cut short: below
    assert repr(read_back(name)) == repr(dict(sorted(overrides.items())))


@no_deadline
@given(OVERRIDES, OVERRIDES)
def test_other_overrides_another_name(one, other):
    same = repr(sorted(one.items())) == repr(sorted(other.items()))
    assert (sweep_runs.pack(one, CONFIG) == sweep_runs.pack(other, CONFIG)) == same


@pytest.mark.parametrize(
    "overrides, name",
    [
        ({}, "unchanged"),
        ({"optimizer.learning_rate": 2e-4}, "learning_rate=2e-4"),
        (
            {"optimizer.schedule": "cosine", "optimizer.learning_rate": 2e-5},
            "learning_rate=2e-5,schedule=cosine",
        ),
        ({"optimizer.learning_rate": 0.1}, "learning_rate=0.1"),
        ({"optimizer.learning_rate": 1.0}, "learning_rate=1.0"),
        ({"optimizer.learning_rate": 1.25e-7}, "learning_rate=1.25e-7"),
        ({"optimizer.weight_decay": 0.0}, "weight_decay=0.0"),
        ({"train.tensorboard": True}, "tensorboard=True"),
        ({"data.path": "a/b,c=d .json"}, "path=a%2Fb%2Cc%3Dd%20.json"),
        ({"data.eval_path": ""}, "eval_path="),
        ({"sharding.rules.embed": "é"}, "embed=%C3%A9"),
    ],
)
def test_names(overrides, name):
    assert sweep_runs.pack(overrides, CONFIG) == name


def test_keys_that_end_alike_are_written_out_whatever_the_sweep_has():
    keys = ("train.seed", "data.seed", "data.path")
    assert sweep_runs.pack({"train.seed": 1}, keys) == "train.seed=1"
    assert sweep_runs.pack({"data.path": "x"}, keys) == "path=x"


def test_long_names_are_cut_and_stay_apart():
    fits = sweep_runs.pack({"data.path": "x" * 95}, CONFIG)
    assert fits == "path=" + "x" * 95
    cut = [sweep_runs.pack({"data.path": "x" * 95 + end}, CONFIG) for end in ("a", "b", "bc")]
    assert len({*cut, fits}) == 4
    assert all(len(name) == 100 and name.startswith("path=xxx") for name in cut)
    posing = sweep_runs.pack({"data.path": cut[0].removeprefix("path=")}, CONFIG)
    assert posing != cut[0], "a value that looks like a cut name is not taken for one"


@no_deadline
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_are_short_and_exact(value):
    text = sweep_runs.as_text(value)
    assert repr(float(text)) == repr(value)
    assert len(text) <= len(repr(value))


# What a sweep may not be.


@pytest.mark.parametrize(
    "sweep, message",
    [
        ("empty", "empty of {config} queues no run"),
        (
            "misspelt",
            "misspelt of {config}: config has no key 'optimizer.learning_rat'; did you mean "
            "'optimizer.learning_rate'?",
        ),
        ("undotted", "no key 'learning_rate'; did you mean 'optimizer.learning_rate'?"),
        ("section", "config has no key 'optimizer'; "),
        ("text_for_number", "train.epochs must be int, not '2'"),
        ("fraction_for_whole", "train.epochs must be int, not 2.5"),
        ("infinite", "optimizer.learning_rate must be float, not inf"),
        ("twice", "queues the same run twice: learning_rate=1.0,seed=3 and learning_rate=1.0"),
        ("default_again", "queues the same run twice: unchanged and seed=42"),
        ("helper", "has no `def helper(add)`; it has sweep, with_failures, endless"),
    ],
)
def test_bad_sweeps(sweeps, sweep, message):
    with pytest.raises(ValueError) as raised:
        queue = sweep_runs.load_function(str(sweeps.config), sweep)
        where = f"{sweep} of {sweeps.config}"
        sweep_runs.make(where, queue, CONFIG, {}, epath.Path(sweeps.workdir))
    assert message.format(config=sweeps.config) in str(raised.value)


def test_a_bad_sweep_is_one_line_before_anything_runs(sweeps):
    code, out, err = sweeps("misspelt")
    assert (code, out) == (1, "")
    assert err.startswith(f"error: misspelt of {sweeps.config}: ") and err.count("\n") == 1
    assert not sweeps.started and not sweeps.workdir.exists()


@pytest.mark.parametrize(
    "args, message, code",
    [
        (["--index=3"], "error: no run 3: the sweep has 3, from 0 to 2", 1),
        (["--index=-1"], "error: no run -1: the sweep has 3, from 0 to 2", 1),
        (["--index=one"], "error: flag --index=one", 2),
        (["--config.train.epoch=1"], "error: ", 2),
        (["--config.optimizer.learning_rate=1"], "sets optimizer.learning_rate itself", 1),
        (["--workdir=s3://bucket/runs"], "give a local folder or gs://", 2),
        (["--launcher=no-such-program-here"], "no-such-program-here", 1),
    ],
)
def test_bad_flags(sweeps, args, message, code):
    got, out, err = sweeps("sweep", *args)
    assert (got, out) == (code, "")
    assert message in err and "Traceback" not in err
    assert not sweeps.started


def test_numbers_of_numpy_are_numbers():
    numpy = pytest.importorskip("numpy")
    for value, key in ((numpy.float64(0.5), "train.x"), (numpy.int64(3), "train.n")):
        got = sweep_runs.check_value("here", key, value, {"train.x": 0.1, "train.n": 1})
        assert (got, type(got)) == (value, type(value.item()))


# What is run.


def test_a_sweep_from_nothing_to_its_table(sweeps):
    code, out, err = sweeps("sweep", "--config.train.seed=7")
    assert code == 0, err
    assert sweeps.started == ["learning_rate=3e-4", "learning_rate=1e-4", "learning_rate=2e-4"]
    lines = out.splitlines()
    assert re.split(r" {2,}", lines[0]) == [
        *("name", "steps", "last loss", "best eval loss", "tokens/s", "hours", "state")
    ]
    # 250 tokens/s: the median of steps 2 and 3; step 1 compiles.
    assert [line.split() for line in lines[1:]] == [
        ["learning_rate=1e-4", "3", "0.3343", "0.0100", "250", "0.003", "finished"],
        ["learning_rate=2e-4", "3", "0.3353", "0.0200", "250", "0.003", "finished"],
        ["learning_rate=3e-4", "3", "0.3363", "0.0300", "250", "0.003", "finished"],
    ]
    content = json.loads((sweeps.workdir / "sweep.json").read_text())
    assert (content["config"], content["sweep"]) == (str(sweeps.config), "sweep")
    assert [row["name"] for row in content["runs"]] == [line.split()[0] for line in lines[1:]]
    assert content["runs"][0] == {
        "name": "learning_rate=1e-4",
        "steps": 3,
        "loss": pytest.approx(1e-3 + 1 / 3),
        "eval_loss": pytest.approx(0.01),
        "tokens_per_second": 250,
        "hours": pytest.approx(0.003),
        "state": "finished",
        "error": None,
        "workdir": str(sweeps.workdir / "learning_rate=1e-4"),
    }
    assert {path.name for path in sweeps.workdir.iterdir()} == {*sweeps.started, "sweep.json"}


def test_finished_runs_are_skipped_and_unfinished_ones_go_on(sweeps):
    sweeps("sweep")
    before = len(sweeps.started)
    unfinished = sweeps.workdir / "learning_rate=2e-4"
    (unfinished / "run.json").write_text('{"end": null}')
    lines = (unfinished / "metrics.jsonl").read_text().splitlines(keepends=True)
    (unfinished / "metrics.jsonl").write_text(lines[0])
    code, out, err = sweeps("sweep")
    assert code == 0
    assert sweeps.started[before:] == ["learning_rate=2e-4"]
    assert "run 0: learning_rate=3e-4 is finished" in err
    assert (unfinished / "metrics.jsonl").read_text() == "".join(lines)
    assert out.count("finished") == 3


def test_a_finished_run_of_other_settings_is_for_train_to_judge(sweeps):
    """Were it skipped, the table would show results of another experiment."""
    sweeps("sweep")
    path = sweeps.workdir / "learning_rate=2e-4" / "run.json"
    path.write_text('{"config": {"train": {"seed": 5}}, "end": "now"}')
    _, out, _ = sweeps("sweep", "--dry_run")
    assert "2e-4: finished, with other settings or inputs (train.seed: 5 before, 42 now)" in out
    sweeps("sweep")
    assert sweeps.started[3:] == ["learning_rate=2e-4"]
    path.write_text('{"config": {"sharding": {"fsdp": 4}}, "end": "now"}')
    sweeps("sweep")
    assert len(sweeps.started) == 4, "where it ran makes no difference"


@pytest.mark.parametrize(
    "changed, difference",
    [
        ("nothing", ""),
        ("paths", ""),
        ("train.jsonl", "data.path: '"),
        ("eval.jsonl", "data.eval_path: '"),
        ("base/tokenizer.json", "model.tokenizer.json: '"),
        ("base/checkpoints", "model.weights: '"),
    ],
)
def test_a_finished_run_of_other_inputs_is_not_finished(
    tmp_path_factory, tmp_path, monkeypatch, changed, difference
):
    corpus = make_corpus(tmp_path_factory.getbasetemp() / "corpus")
    files = shutil.ignore_patterns("finished")
    monkeypatch.chdir(shutil.copytree(corpus, tmp_path / "one", ignore=files))
    paths = {"model.checkpoint": "base", "data.path": "train.jsonl", "data.eval_path": "eval.jsonl"}
    (run,) = sweep_runs.make("s", lambda add: add(), CONFIG | paths, {}, epath.Path(tmp_path))
    inputs = identity.of_inputs(*paths.values())
    run.workdir.mkdir()
    record = {"config": nested(run.config), "inputs": inputs, "end": "now"}
    (run.workdir / "run.json").write_text(json.dumps(record))
    (run.workdir / "metrics.jsonl").write_text('{"step": 1, "loss": 1.5, "seconds": 9}\n')
    if changed == "paths":
        moved = Path.cwd().rename(tmp_path / "two")
        paths = {key: str(moved / path) for key, path in paths.items()}
        run = dataclasses.replace(run, config=run.config | paths)
    elif changed == "base/checkpoints":
        shutil.rmtree(changed)
        checkpoint.save_params("base", params.init(VARIANTS["tiny"], jax.random.key(1)))
    elif changed != "nothing":
        with open(changed, "a") as file:
            file.write("\n")
    sweep.inputs.cache_clear()
    assert sweep.is_finished(run) is (difference == "")
    assert sweep.row(run)["state"].startswith(
        f"finished, with other settings or inputs ({difference}" if difference else "finished"
    )
    assert difference or sweep.row(run)["state"] == "finished"


def nested(flat: dict) -> dict:
    content: dict = {}
    for key, value in flat.items():
        *sections_of_key, last = key.split(".")
        section = content
        for name in sections_of_key:
            section = section.setdefault(name, {})
        section[last] = value
    return content


def test_a_failing_run_does_not_stop_the_others(sweeps):
    code, out, err = sweeps("with_failures")
    assert code == 1
    assert sweeps.started == ["seed=1", "seed=13", "seed=2"]
    assert "error: out of luck" in err, "as it happens"
    last = out.splitlines()[-1]
    assert last.startswith("seed=13 ") and last.endswith("  failed 3: error: out of luck")
    row = sweeps.rows()[-1]
    assert (row["state"], row["error"]) == ("failed 3", "error: out of luck")
    assert [row["state"] for row in sweeps.rows()[:-1]] == ["finished", "finished"]
    assert sweeps("with_failures")[0] == 1
    assert sweeps.started[3:] == ["seed=13"], "it is tried again"


@pytest.mark.parametrize(
    "said, shown",
    [
        ("echo error: why >&2; echo launcher: ending the others >&2", "error: why"),
        ("echo first >&2; echo; echo last >&2; echo >&2", "last"),
        ("true", ""),
    ],
)
def test_what_is_shown_of_a_failure(sweeps, said, shown):
    sweeps.launcher = f"sh -c '{said}; exit 7'"
    code, out, _ = sweeps("sweep", "--index=0")
    assert code == 1
    assert re.search(rf"failed 7(: {shown})?$", out, re.MULTILINE)
    assert [row["error"] for row in sweeps.rows() if row["state"] == "failed 7"] == [shown]


@pytest.mark.parametrize("how", ["flag", "environment", "both"])
def test_one_run_of_a_job_array(sweeps, how):
    args = ["--index=1"] if how != "environment" else []
    env = {"flag": {}, "environment": {"SLURM_ARRAY_TASK_ID": "1"}}
    code, out, _ = sweeps("sweep", *args, **env.get(how, {"SLURM_ARRAY_TASK_ID": "2"}))
    assert code == 0
    assert sweeps.started == ["learning_rate=1e-4"]
    assert out.count("not started") == 2
    assert [row["state"] for row in sweeps.rows()] == ["finished", "not started", "not started"]


def test_a_bad_index_of_slurm_is_named(sweeps):
    code, _, err = sweeps("sweep", SLURM_ARRAY_TASK_ID="x")
    assert (code, err) == (1, "error: SLURM_ARRAY_TASK_ID is 'x', not a number\n")


def test_dry_run_prints_commands_and_what_is_finished(sweeps):
    sweeps("sweep", "--index=1")
    (sweeps.workdir / "sweep.json").unlink()
    code, out, err = sweeps("sweep", "--dry_run", "--config.train.seed=7", "--launcher=bash x --")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "# run 0: learning_rate=3e-4: not started"
    assert lines[1] == (
        f"bash x -- python -m alpacare_jax.train --config={sweeps.config} --config.train.seed=7 "
        "--config.optimizer.learning_rate=3e-4 "
        f"--workdir={sweeps.workdir}/learning_rate=3e-4"
    )
    assert lines[2] == "# run 1: learning_rate=1e-4: finished"
    assert len(lines) == 6
    assert len(sweeps.started) == 1 and not (sweeps.workdir / "sweep.json").exists()
    _, out, _ = sweeps("sweep", "--dry_run", "--index=2", "--launcher=")
    assert out.splitlines()[1].startswith(f"{sys.executable} -m alpacare_jax.train ")
    assert out.count("\n") == 2


def test_the_argument_of_the_config_is_passed_on_and_names_the_default_folder():
    done = subprocess.run(
        [
            *(sys.executable, "launch/sweep.py", "--config=configs/alpacare.py:llama2-7b"),
            *("--dry_run", "--index=0"),
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert " --config=configs/alpacare.py:llama2-7b " in done.stdout
    assert "--workdir=runs/alpacare-llama2-7b-sweep/learning_rate=5e-6\n" in done.stdout


def test_only_the_table(sweeps):
    sweeps("sweep", "--index=0")
    (sweeps.workdir / "sweep.json").unlink()
    code, out, err = sweeps("sweep", "--table", SLURM_ARRAY_TASK_ID="1")
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()[1:]] == [
        *("learning_rate=3e-4", "learning_rate=1e-4", "learning_rate=2e-4")
    ]
    assert len(sweeps.started) == 1 and not (sweeps.workdir / "sweep.json").exists()


def test_help():
    done = subprocess.run(
        [sys.executable, "launch/sweep.py", "--help"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    for text in ("python launch/sweep.py --config=", "--[no]dry_run", "--index", "--launcher"):
        assert text in done.stdout


def test_starting_a_sweep_does_not_load_jax():
    code = "import sys; from launch import sweep; print('jax' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.stdout == "False\n", done.stderr


# Signals.


def wait_for(path: Path, process: subprocess.Popen) -> None:
    end = time.monotonic() + LIMIT
    while not path.exists() or not path.read_text():
        assert process.poll() is None and time.monotonic() < end, process.communicate()[1]
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("front", ["", "sh -c '\"$@\"; exit' sh"], ids=["direct", "shell"])
def test_a_signal_lets_the_run_save_and_ends_the_sweep(sweeps, number, front):
    """To the whole process group, as a terminal sends Ctrl-C; the shell waits for nobody."""
    sweeps.launcher = f"{front} {sweeps.launcher}"
    process = sweeps.start("endless")
    wait_for(sweeps.workdir / "epochs=99" / "metrics.jsonl", process)
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=LIMIT)
    assert process.returncode == (130 if number == signal.SIGINT else 0), err
    assert err.splitlines()[-2:] == [
        *("stopped by SIGTERM", "stopped; rerun the same command to resume")
    ]
    assert sweeps.started == ["learning_rate=1e-3", "epochs=99"]
    assert [row["state"] for row in sweeps.rows()] == [
        *("finished", "unfinished, at step 2", "not started")
    ]
    assert "unfinished, at step 2" in out.splitlines()[2]


def test_a_signal_before_the_run_can_save_is_no_failure(sweeps):
    sweeps.launcher = f"sh -c 'echo $$ > {sweeps.workdir}.up; sleep 60' sh"
    process = sweeps.start("endless")
    wait_for(Path(f"{sweeps.workdir}.up"), process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 0
    assert err.endswith("stopped; rerun the same command to resume\n")
    assert out.count("not started") == 3


# The table.


def write_run(workdir: Path, steps: list[dict], end: str | None = "now") -> Path:
    workdir.mkdir()
    (workdir / "run.json").write_text(json.dumps({"end": end}))
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    return workdir


def test_the_best_run_comes_first(tmp_path):
    runs = {
        "loss only, worse": [{"step": 1, "loss": 0.2}],
        "no steps": [],
        "second": [{"step": 1, "loss": 0.1, "eval_loss": 1.5}, {"step": 2, "loss": 0.4}],
        "loss only": [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 0.1}],
        "first": [
            {"step": 0, "eval_loss": 0.5},  # the base model's
            {"step": 1, "loss": 2.0, "eval_loss": 1.2},
            {"step": 2, "loss": 1.0, "eval_loss": 1.9},
        ],
    }
    folders = [write_run(tmp_path / name, steps) for name, steps in runs.items()]
    folders.sort(key=lambda folder: sweep_results.read(folder).order)
    rows = [sweep_results.row(folder.name, folder) for folder in folders]
    assert [row["name"] for row in rows] == [
        *("first", "second", "loss only", "loss only, worse", "no steps")
    ]
    assert [row["eval_loss"] for row in rows] == [1.2, 1.5, None, None, None]
    assert [row["loss"] for row in rows] == [1.0, 0.4, 0.1, 0.2, None]


def test_the_numbers_of_a_run(tmp_path):
    steps = [{"step": 0, "eval_loss": 2.0}] + [
        {"step": i, "loss": 1 / i, "tokens_per_second": 10.0**i, "seconds": 1800.0}
        for i in range(1, 6)
    ]
    workdir = write_run(tmp_path / "w", steps, end=None)
    with open(workdir / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "lo')
    row = sweep_results.row("w", workdir)
    assert (row["steps"], row["loss"]) == (5, 0.2)
    assert row["tokens_per_second"] == (1e3 + 1e4) / 2, "the median without step 1, which compiles"
    assert row["hours"] == 2.5
    assert row["state"] == "unfinished, at step 5"
    (workdir / "run.json").write_text("{")
    assert sweep_results.row("w", workdir)["state"] == "unfinished, at step 5"
    assert sweep_results.row("w", tmp_path / "none")["state"] == "not started"
    assert sweep_results.row("w", workdir, (1, "why"))["state"] == "failed 1"


def test_columns_are_aligned(tmp_path):
    names = ("a", "a much longer name")
    rows = [
        sweep_results.row(name, write_run(tmp_path / name, [{"step": 12345 * i, "loss": 1.0 * i}]))
        for i, name in enumerate(names, 1)
    ]
    lines = sweep_results.table(rows).splitlines()
    assert len({line.index("finished") for line in lines[1:]} | {lines[0].index("state")}) == 1
    assert (
        len(
            {
                line.index(text) + len(text)
                for line, text in zip(lines, ("steps", "12,345", "24,690"), strict=True)
            }
        )
        == 1
    )


# With real training.


# Trains, but at its first step it sends SIGINT to the sweep, and waits for the sweep's SIGTERM.
INTERRUPTS = """
import os, runpy, signal, sys, time

del sys.argv[1:4]
sys.path[0] = os.getcwd()  # as python -m has it
from alpacare_jax.training import progress

report = progress.TrainingProgress.step

def report_and_interrupt(self, *args):
    report(self, *args)
    progress.TrainingProgress.step = report
    handler = signal.getsignal(signal.SIGTERM)
    came = []
    signal.signal(signal.SIGTERM, lambda *args: (came.append(1), handler(*args)))
    os.kill(os.getppid(), signal.SIGINT)
    while not came:
        time.sleep(0.01)

progress.TrainingProgress.step = report_and_interrupt
runpy.run_module("alpacare_jax.train", run_name="__main__", alter_sys=True)
"""


@pytest.mark.slow
def test_a_real_run_stops_resumes_and_is_skipped(sweeps, tmp_path_factory):
    corpus = make_corpus(tmp_path_factory.getbasetemp() / "corpus")
    sweeps.stand_in.write_text(INTERRUPTS)
    changes = settings(corpus)
    del changes["optimizer.learning_rate"]
    args = ["--index=0", *(f"--config.{key}={value}" for key, value in changes.items())]
    one_device = COMPILES_QUICKLY | {"JAX_NUM_CPU_DEVICES": "1"}
    code, out, err = sweeps("sweep", *args, **one_device)
    assert code == 130, err
    assert re.search(r"stopped by SIGTERM; checkpoint saved at step \d+;", err)
    assert re.search(r"stopped at step \d+\n.*not started", out)
    sweeps.launcher = ""
    code, out, err = sweeps("sweep", *args, **one_device)
    assert code == 0, err
    assert "resuming from step" in err
    row = sweeps.rows()[0]
    assert (row["steps"], row["state"]) == (10, "finished")
    assert 0 < row["eval_loss"] < 6
    queue = sweep_runs.load_function(str(sweeps.config), "sweep")
    runs = sweep_runs.make("s", queue, CONFIG | changes, changes, epath.Path(sweeps.workdir))
    assert [sweep.is_finished(run) for run in runs] == [True, False, False]
