"""How commands end: exit codes, one line for an error, the traceback on demand."""

import doctest
import errno
import os

import pytest

from common import cli
from tests.support import commands

SCRIPT = """
from absl import flags
from common import cli

class Custom(Exception):
    pass

def main(argv):
    kind = flags.FLAGS.kind
    if kind == "fine":
        print("done")
    elif kind == "code":
        return 3
    elif kind == "lines":
        raise ValueError("first line\\n\\n   second\\tline\\n")
    elif kind == "silent":
        raise ValueError
    elif kind == "file":
        open("/no/such/file")
    elif kind == "number":
        raise FloatingPointError("loss is nan")
    elif kind == "ctrl-c":
        raise KeyboardInterrupt
    else:
        raise Custom("a bug of ours")

KINDS = ["fine", "code", "lines", "silent", "file", "number", "ctrl-c", "bug"]
flags.DEFINE_enum("kind", "fine", KINDS, "")
flags.DEFINE_integer("steps", 1, "How many.", lower_bound=1)
flags.DEFINE_string("workdir", None, "Where.", required=True)
cli.run(main)
"""


def test_doctests():
    assert doctest.testmod(cli).failed == 0


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """Runs the script above with arguments: (exit code, stdout, stderr)."""
    script = tmp_path_factory.mktemp("cli") / "script.py"
    script.write_text(SCRIPT)

    def run(*arguments, workdir=True):
        required = ["--workdir=w"] if workdir else []
        done = commands.run(str(script), *required, *arguments)
        return done.returncode, done.stdout, done.stderr

    return run


def test_done_is_0(command):
    assert command("--kind=fine") == (0, "done\n", "")


def test_a_command_may_choose_its_code(command):
    assert command("--kind=code") == (3, "", "")


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("lines", "error: first line second line\n"),
        ("silent", "error: ValueError\n"),
        ("file", "error: /no/such/file: no such file or folder\n"),
        ("number", "error: loss is nan\n"),
    ],
)
def test_an_error_is_1_and_one_line(command, kind, line):
    assert command(f"--kind={kind}") == (1, "", line)


def test_an_interruption_is_130_and_one_line(command):
    assert command("--kind=ctrl-c") == (130, "", "interrupted\n")


def test_debug_shows_the_traceback(command):
    code, out, err = command("--kind=lines", "--debug")
    assert (code, out) == (1, "")
    assert err.startswith("Traceback (most recent call last)")
    assert "script.py" in err and "in main" in err
    assert "ValueError: first line\n" in err
    assert "error: " not in err


def test_a_bug_is_one_line_that_is_not_dressed_up_as_an_error_of_the_user(command):
    code, _, err = command("--kind=bug")
    assert (code, err.count("\n")) == (1, 1)
    assert err.startswith("error: internal error, Custom: a bug of ours at ")
    assert err.endswith("; --debug shows the traceback; please report it\n")
    code, _, err = command("--kind=bug", "--debug")
    assert code == 1 and "Traceback" in err and "Custom: a bug of ours" in err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--step=2"], "step"),
        (["--steps=two"], "steps"),
        (["--steps=0"], "steps"),
        (["--kind=other"], "kind"),
        (["--steps"], "steps"),
        (["--nodebug=3"], "debug"),
        (["kind=fine"], "kind=fine"),
        (["--kind=fine", "extra"], "extra"),
    ],
)
def test_wrong_flags_are_2_and_one_line(command, arguments, named):
    code, out, err = command(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1
    assert named in err


def test_a_missing_flag_is_2(command):
    code, out, err = command(workdir=False)
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1 and "--workdir is required" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--config=none.py", "--config.a=1"], "error: no such file: none.py\n"),
        (["--config=config/paper.py"], "error: no such file: config/paper.py\n"),
        (["--config=."], "--config could not be loaded: .: is a folder; give a file"),
        (["--config=README.md"], "(README.md, line"),
        (["--config=configs/evaluation.py", "--config.chat.modle=x"], "has no key 'modle'"),
        (["--config=configs/evaluation.py:x"], "unknown config argument 'x'; choose from small"),
        (["--config=configs/paper.py:x"], "config argument 'x'; this file takes none"),
    ],
)
def test_a_config_that_cannot_be_loaded_is_one_line(tmp_path, arguments, said):
    given = f"--workdir={tmp_path}", "--benchmark=x", *arguments
    done = commands.run("evaluation.references", *given)
    assert done.returncode in (1, 2) and said in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "p: no space left on the device; make room and rerun the same command"),
        (errno.EACCES, "p: no permission; change its mode or owner, or give another path"),
        (errno.EROFS, "p: the file system is read-only; give another path"),
        (errno.EIO, "[Errno 5] Input/output error: 'p'"),
    ],
)
def test_an_error_of_the_system_comes_with_a_remedy(number, said):
    assert cli.error_text(OSError(number, os.strerror(number), "p")) == said


def test_help_is_0_and_needs_no_flag(command):
    code, out, _ = command("--help", workdir=False)
    assert code == 0
    assert all(name in out for name in ("--workdir", "--steps", "--[no]debug"))


GLOO = "UNKNOWN: Gloo all-reduce failed: [gloo/transport/tcp/pair.cc:547] Connection closed by peer"
LOST = {
    GLOO: True,  # what JAX 0.10.2 raised, as a ValueError, when the other process was killed
    "UNAVAILABLE: Failed to send RPC to coordination service": True,
    "DEADLINE_EXCEEDED: Barrier timed out": True,
    "ABORTED: tasks are unhealthy (stopped sending heartbeats): /job:jax_worker/task:1": True,
    "INTERNAL: NCCL operation failed: remote process exited or there was a network error": True,
    "INTERNAL: Mosaic failed to compile TPU kernel": False,
    "RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes": False,
    "INVALID_ARGUMENT: shapes differ": False,
    "data.json:3: heartbeat: connection closed": False,
    "UNAVAILABLE": False,
}


@pytest.mark.parametrize("kind", [ValueError, RuntimeError])
@pytest.mark.parametrize("text", LOST)
def test_what_a_restart_mends_ends_with_75(capsys, kind, text):
    assert cli.fail(kind(text)) == (75 if LOST[text] else 1)
    line = capsys.readouterr().err
    assert ("was lost" in line) == LOST[text] and text in line and line.count("\n") == 1


@pytest.mark.parametrize("error", [ValueError, OSError, FloatingPointError])
def test_fail_returns_1(capsys, error):
    assert cli.fail(error("wrong\n  and why")) == 1
    assert capsys.readouterr() == ("", "error: wrong and why\n")
