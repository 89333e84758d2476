"""The whole way on a small model: seeds, tasks, answers, training, dual-sided judging, report.

    bash launch/quickstart.sh [--base_url=URL --model=NAME] [--domain=law] [--workdir=quickstart]

launch/quickstart.sh prepares the environment and the model's file, and starts this. Every stage is
a command that a user may run; it is skipped where its output is there.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags
from etils import epath

from common import cli, provenance
from common.messages import log
from launch.lib.pipeline import Pipeline
from launch.quickstart import summary
from launch.quickstart.plan import BUDGET, FINDS_NOTHING, MODEL, Plan, Teacher, choose_teacher


def require_same(plan: Plan) -> None:
    """Raises ValueError if the folder was begun with another teacher or domain."""
    path, teacher = plan.folder / "quickstart.json", plan.teacher
    now = {"domain": plan.domain, "model": teacher.model, "base_url": teacher.base_url}
    if path.exists() and (before := provenance.read_json(path)) != now:
        found = provenance.as_text(provenance.differences(before, now))
        raise ValueError(
            f"{plan.folder} was begun with other settings ({found}); choose another --workdir, "
            "or delete it"
        )
    provenance.write_json(path, now)


def introduction(teacher: Teacher) -> str:
    """Who will teach and judge, and what to expect of it."""
    if teacher.own:
        return (
            f"{MODEL} writes tasks, answers and judges here, without a key. A model of this size "
            "proves the plumbing, not the quality; set OPENAI_API_KEY, or give --base_url and "
            "--model, for a larger one."
        )
    price = f"for at most {BUDGET[-1]} USD a command; unset OPENAI_API_KEY for the model here"
    where = teacher.base_url or f"OpenAI, {price}"
    return f"{teacher.model} writes tasks, answers and judges, at {where}."


def run(plan: Plan) -> int:
    """Runs what is not done, and writes the last page; returns the exit code."""
    require_same(plan)
    log(introduction(plan.teacher))
    stages = plan.stages()
    logs = Path(plan.folder) / "logs"
    code = Pipeline("quickstart", stages, logs, excused=FINDS_NOTHING).run(stages)
    if not code:
        print(summary.write(plan))
    return code


def main(argv: Sequence[str]) -> int:
    """The command."""
    del argv
    FLAGS = flags.FLAGS
    teacher = choose_teacher(FLAGS.base_url, FLAGS.model)
    return run(Plan(epath.Path(FLAGS.workdir), FLAGS.domain, teacher))


if __name__ == "__main__":
    flags.DEFINE_string("workdir", "quickstart", "Folder for everything.")
    flags.DEFINE_string("domain", "medicine", "medicine, or one of configs/domains: its data only.")
    flags.DEFINE_string("base_url", "", "Server to ask instead: http://HOST:PORT/v1.")
    flags.DEFINE_string("model", "", "Its model; with OPENAI_API_KEY set, one of OpenAI's.")
    cli.run(main, output="workdir")
