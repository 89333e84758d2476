"""One stage of the pipeline: a command line, and whether the record of its output shows it done."""

import dataclasses
import hashlib
import json
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags
from etils import epath
from ml_collections import config_flags

from common import provenance, sections
from launch.paper.estimates import Estimate

OF_FOLDERS = ("train", "references", "judge", "choices", "rubric", "report")
"""Kinds of stages whose record is that of a folder, run.json."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """A command that makes one output from files, or from models' folders."""

    name: str  # KIND/SYSTEM/TEST SET, as far as there are some
    command: tuple[str, ...]  # a module and its flags
    inputs: Sequence[epath.Path]
    output: epath.Path  # the file whose digest the record has, if it has one
    estimate: Estimate = dataclasses.field(default_factory=Estimate)
    on_devices: bool = False  # whether it needs accelerators
    launcher: str = ""  # the command that runs it where they are; "": they are here
    served: tuple[str, ...] = ()  # flags of the server that it asks: --checkpoint=FOLDER
    model: epath.Path | None = None  # the folder of the weights that are served

    @property
    def kind(self) -> str:
        """The name's first part."""
        return self.name.partition("/")[0]

    @property
    def record(self) -> epath.Path:
        """The run.json of the output: its own, or that of its folder."""
        own = epath.Path(provenance.run_json(self.output))
        if self.kind == "plan":
            return self.output
        return self.output.parent / "run.json" if self.kind in OF_FOLDERS else own

    @property
    def model_name(self) -> str:
        """Of the model that is served: by its weights, which records and replies have not else."""
        if not self.model:
            return ""
        weights = hashlib.sha256("".join(sorted(digests(self.model))).encode()).hexdigest()
        return f"{self.model.name}-{weights[:12]}"

    @property
    def arguments(self) -> list[str]:
        """The command, with the name of the model that is served."""
        return [*self.command, *([f"--model={self.model_name}"] if self.model else [])]

    @property
    def by_hand(self) -> str:
        """The command as one would type it; of a served model, with that of its server."""
        command = f"python -m {shlex.join(self.arguments)}"
        if not self.served:
            return f"{self.launcher} {command}".strip()
        server = shlex.join(["alpacare_jax.serve", *self.served, f"--name={self.model_name}"])
        return f"python -m {server}\n{command} --base_url=http://127.0.0.1:8000/v1"

    @property
    def ended(self) -> bool:
        """Whether the record has the end of a run, and the output is there."""
        return bool(provenance.read_record(self.record).get("end")) and self.output.exists()

    def unfinished(self) -> str:
        """Why the stage is to be run; "" if it is done.

        It is done if the record of its output says so: the run has ended, with the settings and
        flags of now, on inputs of the content of now, as far as they are still here, and the output
        is the one that it wrote.

        Raises:
          ValueError: the record is damaged, or the output was changed after it was made.
        """
        record = provenance.read_record(self.record)
        if not self.ended:
            return "unfinished" if record else "not started"
        if found := provenance.as_text(self._changed_settings(record)):
            return f"other settings ({found})"
        recorded = json.dumps(record)
        for path in (path for path in self.inputs if path != self.model):
            now = [*digests(path)]  # none: it is gone, or where the devices are
            if now and not any(digest in recorded for digest in now):
                return f"{path} has other content now"
        if record.get("sha256") not in (None, *digests(self.output)):
            raise ValueError(
                f"{self.output} is damaged or was edited after stage {self.name} had made it; "
                "delete it, and it is made again, or restore it"
            )
        return ""

    def _changed_settings(self, record: dict[str, Any]) -> dict[str, str]:
        """Differences of config and flags; of training only those that it does not allow."""
        before, now = sections.flatten(record.get("config", {})), resolved(self.command)
        compared = sorted(now.keys() & before.keys())
        found = provenance.differences(
            {key: before[key] for key in compared}, {key: now[key] for key in compared}
        )
        if self.kind == "train":
            return without_allowed(found) if found else {}
        own = {*self.arguments[1:]}
        ignored = "--base_url" if self.served else "--debug"
        used = {flag for flag in record.get("flags", own) if not flag.startswith(ignored)}
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
