"""One stage of a pipeline: a command, and whether the record of its output shows it done."""

import dataclasses
import hashlib
import json
import shlex
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags
from etils import epath
from ml_collections import config_flags

from common import paths, provenance, sections
from common.text.prompt_file import Prompt
from datagen.config import DATAGEN_PROMPTS
from evaluation.judging.judges import Judge

OF_FOLDERS = ("base", "train", "references", "judge", "choices", "rubric", "stats", "report")
"""Kinds of stages whose record is that of a folder, run.json."""

KEPT = ("answers.sqlite", "old")
"""How names begin that stay in a folder: replies are paid for, and are found again by request."""


@dataclasses.dataclass(frozen=True)
class Server:
    """A server of a model of ours, which a stage asks."""

    model: epath.Path  # the folder of the weights that decide what it answers
    flags: Sequence[str]  # of alpacare_jax.serve
    name: str = ""  # "": the folder's
    section: str = ""  # of the command's config, "config.teacher."; "": the command has flags

    @property
    def model_name(self) -> str:
        """By the weights, which records and replies have not else."""
        weights = hashlib.sha256("".join(sorted(digests(self.model))).encode()).hexdigest()
        return f"{self.name or self.model.name}-{weights[:12]}"

    @property
    def command(self) -> list[str]:
        """What follows `python -m alpacare_jax.serve`."""
        return [*self.flags, f"--name={self.model_name}"]

    def address(self, url: str = "") -> str:
        """The flag with which a command finds it; its port says nothing about its answers."""
        return f"--{self.section}base_url={url}"


@dataclasses.dataclass(frozen=True)
class Stage:
    """A command that makes one output from files, or from models' folders."""

    name: str  # KIND/SYSTEM/TEST SET, as far as there are some
    command: tuple[str, ...]  # a module and its flags
    inputs: Sequence[epath.Path]
    output: epath.Path  # the file whose digest the record has, if it has one
    estimate: Any = None  # what it takes
    on_devices: bool = False  # whether it needs accelerators
    launcher: str = ""  # the command that runs it where they are; "": they are here
    server: Server | None = None

    @property
    def kind(self) -> str:
        """The name's first part."""
        return self.name.partition("/")[0]

    @property
    def record(self) -> epath.Path:
        """The run.json of the output: its own, or that of its folder."""
        if self.kind == "plan":
            return self.output
        own = epath.Path(provenance.run_json(self.output))
        return self.output.parent / "run.json" if self.kind in OF_FOLDERS else own

    @property
    def arguments(self) -> list[str]:
        """The command, with the name of the model that is served."""
        server = self.server
        named = [f"--{server.section}model={server.model_name}"] if server else []
        return [*self.command, *named]

    @property
    def by_hand(self) -> str:
        """The command as one would type it; of a served model, with that of its server."""
        command = f"python -m {shlex.join(self.arguments)}"
        if not self.server:
            return f"{self.launcher} {command}".strip()
        serve = shlex.join(["alpacare_jax.serve", *self.server.command])
        return f"python -m {serve}\n{command} {self.server.address('http://127.0.0.1:8000/v1')}"

    @property
    def ended(self) -> bool:
        """Whether the record has the end of a run, and the output is there."""
        return bool(provenance.read_record(self.record).get("end")) and self.output.exists()

    def unfinished(self) -> str:
        """Why the stage is to be run; "" if it is done.

        It is done if the record of its output says so: the run has ended, nothing has changed
        since, and the output is the one that it wrote.

        Raises:
          ValueError: the record is damaged, or the output was changed after it was made.
        """
        record = provenance.read_record(self.record)
        if not self.ended:
            return "unfinished" if record else "not started"
        if found := self.changed():
            return found
        if record.get("sha256") not in (None, *digests(self.output)):
            raise ValueError(
                f"{self.output} is damaged or was edited after stage {self.name} had made it; "
                "delete it, and it is made again, or restore it"
            )
        return ""

    def changed(self) -> str:
        """What has changed since the record began: settings, flags, prompts, content of inputs.

        Inputs count as far as they are still here.
        """
        record, config = provenance.read_record(self.record), resolved(self.arguments)
        if found := provenance.as_text(self._changed_settings(record, config)):
            return f"other settings ({found})"
        recorded, served = json.dumps(record), self.server and self.server.model
        for path in (path for path in self.inputs if path != served):
            now = [*digests(path)]  # none: it is gone, or where the devices are
            if now and not any(digest in recorded for digest in now):
                return f"{path} has other content now"
        texts = (each for each in prompts(self.kind, config) if each not in recorded)
        return next((f"{text} is another prompt than before" for text in texts), "")

    def put_aside(self) -> None:
        """Moves what is of another run to old/ beside it: no command replaces that.

        Record and output come last, so that after a kill the rest follows. In a bucket all stays,
        and the command says what to do.
        """
        folder = self.output.parent
        made = [folder / "unused.jsonl", self.output, self.record]  # the first of responses
        if paths.in_bucket(folder) or not self.record.exists() or not self.changed():
            return
        old = folder / "old"
        if self.kind in OF_FOLDERS:
            made = [path for path in folder.iterdir() if not path.name.startswith(KEPT)]
        if all((parent / "checkpoints").exists() for parent in (folder, old)):
            raise ValueError(f"{old} holds an earlier model; delete it, or move it elsewhere")
        old.mkdir(exist_ok=True)
        for path in sorted(made, key=lambda path: (path == self.record, path == self.output)):
            if (target := old / path.name).is_dir():
                shutil.rmtree(target)
            if path.exists():
                path.replace(target)

    def _changed_settings(self, record: dict[str, Any], now: dict[str, Any]) -> dict[str, str]:
        """Differences of config and flags; of training only those that it does not allow."""
        address = self.server.address() if self.server else "--debug"
        before = sections.flatten(record.get("config", {}))
        keys = sorted(now.keys() & before.keys() - {address[:-1].removeprefix("--config.")})
        found = provenance.differences({k: before[k] for k in keys}, {k: now[k] for k in keys})
        if self.kind == "train":
            return without_allowed(found) if found else {}
        own = {*self.arguments[1:]}
        used = {flag for flag in record.get("flags", own) if not flag.startswith(address)}
        return found | {f: "now" if f in own else "before" for f in sorted(own ^ used)}


def without_allowed(found: dict[str, str]) -> dict[str, str]:
    """The differences without those with which a training run may resume."""
    from alpacare_jax.training import workdir  # imports jax, which takes seconds

    return {
        key: change
        for key, change in found.items()
        if key.partition(".")[0] in workdir.SAME_RUN
        and key not in (*workdir.MAY_CHANGE, *workdir.BY_CONTENT)
    }


def prompts(kind: str, config: dict[str, Any]) -> list[str]:
    """The versions of the prompts that a kind of stage fills in, by its config."""
    if kind == "judge":
        return [judge.prompt.version for judge in map(Judge.load, entries(config["judges"]))]
    names = [config[f"{kind}.prompt"]] if kind in ("tasks", "responses") else []
    if kind == "responses" and config["responses.min_rating"]:
        names.append(config["responses.rating_prompt"])
    return [Prompt.read(name, DATAGEN_PROMPTS).version for name in names]


def entries(text: str) -> list[str]:
    """The parts of a list with commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def resolved(command: Sequence[str]) -> dict[str, Any]:
    """The config of a command's --config flags by dotted key; {} if it has none."""
    values = flags.FlagValues()
    given = [flag for flag in command if flag.startswith("--config")]
    arguments = ["command", *given]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=arguments)
    values(arguments)
    return sections.flatten(values.config.to_dict()) if given else {}


def digests(path: epath.Path) -> Iterator[str]:
    """Digests by which a record names what was at `path`: a file's, or those of a model's weights.

    None where nothing is there.
    """
    if path.is_dir():
        for manifest in path.glob("checkpoints/*/manifest.json"):
            yield provenance.read_json(manifest)["weights"]
    elif path.exists():
        yield provenance.sha256(path)
