"""One stage of the pipeline: a command line, and whether the record of its output shows it done."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags
from etils import epath
from ml_collections import config_flags

from common import provenance, sections
from launch.paper.estimates import Estimate
from launch.sweep import BY_CONTENT

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
    def arguments(self) -> list[str]:
        """The command; a served model is named by its weights, which its record has not else."""
        if not self.model:
            return [*self.command]
        weights = hashlib.sha256("".join(sorted(digests(self.model))).encode()).hexdigest()
        return [*self.command, f"--model={self.model.name}-{weights[:12]}"]

    def unfinished(self) -> str:
        """Why the stage is to be run; "" if it is done.

        It is done if the record of its output says so: the run has ended, with the settings and
        flags of now, on inputs of the content of now, and the output is the one that it wrote.

        Raises:
          ValueError: the record is damaged, or the output was changed after it was made.
        """
        record = provenance.read_record(self.record)
        if not (record.get("end") and self.output.exists()):
            return "unfinished" if record else "not started"
        if found := provenance.as_text(self._changed_settings(record)):
            return f"other settings ({found})"
        recorded = json.dumps(record)
        for path in (path for path in self.inputs if path != self.model):
            if not any(digest in recorded for digest in digests(path)):
                return f"{path} has other content now"
        if record.get("sha256") not in (None, *digests(self.output)):
            raise ValueError(
                f"{self.output} is damaged or was edited after stage {self.name} had made it; "
                "delete it, and it is made again, or restore it"
            )
        return ""

    def _changed_settings(self, record: dict[str, Any]) -> dict[str, str]:
        """Differences of config and flags. Paths in a config may differ: their content counts."""
        given = [flag for flag in self.command[1:] if flag.startswith("--config")]
        before = sections.flatten(record.get("config", {}))
        now = sections.flatten(resolved(given)) if given else {}
        compared = [
            key
            for key in now.keys() & before.keys()
            if key not in BY_CONTENT and not key.startswith(("checkpoint.", "sharding."))
        ]
        found = provenance.differences(
            {key: before[key] for key in sorted(compared)}, {key: now[key] for key in compared}
        )
        own = {flag for flag in self.arguments[1:] if flag not in given}
        ignored = ("--config", "--base_url") if self.served else ("--config",)
        used = {flag for flag in record.get("flags", own) if not flag.startswith(ignored)}
        for flag in sorted(own ^ used) if self.kind != "train" else ():
            found[flag] = "now" if flag in own else "before"
        return found


def resolved(given: Sequence[str]) -> dict[str, Any]:
    """The config of `--config=FILE` and `--config.KEY=VALUE` among flags, as a command sees it."""
    values = flags.FlagValues()
    arguments = ["command", *(flag for flag in given if flag.startswith("--config"))]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=arguments)
    values(arguments)
    return values.config.to_dict()


def digests(path: epath.Path) -> Iterator[str]:
    """Digests by which a record names what was at `path`: a file's, or those of a model's weights.

    None where nothing is there.
    """
    if path.is_dir():
        for manifest in path.glob("checkpoints/*/manifest.json"):
            yield provenance.read_json(manifest)["weights"]
    elif path.exists():
        yield provenance.sha256(path)
