"""The stages of the paper, in their order, from its systems and test sets."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from common import cli, provenance, sections
from launch.lib.stage import Server, Stage, entries
from launch.paper import requests
from launch.paper.estimates import Estimate, on_chips
from launch.paper.sources import Sources, System
from launch.sweep_runs import as_text

DATAGEN, EVALUATION = "configs/datagen.py", "configs/evaluation.py"


def every(sources: Sources) -> list[Stage]:
    """All stages; each reads what earlier ones, or nobody here, made."""
    found = [*data(sources), *sent(sources), *training(sources), *answers(sources)]
    found += [*references(sources), *judging(sources), *served(sources)]
    judged, folder = [s.output for s in found if s.kind == "judge"], sources.workdir / "report"
    verdicts = f"--judgements={','.join(str(path.parent) for path in judged)}"
    given = (verdicts, f"--output={folder}", *shlex.split(sources.config.flags.report))
    report = Stage("report", ("evaluation.report", *given), judged, folder / "report.html")
    return [*found, report]


def data(sources: Sources) -> Iterator[Stage]:
    """The training data, where no file of it is given."""
    if sources.config.examples:
        return
    folder, config = sources.workdir / "data", sources.datagen
    tasks, kept = folder / "tasks.jsonl", folder / "kept.jsonl"
    given = (*overrides(DATAGEN, sources.config.datagen), f"--workdir={folder}")
    seeds, files = epath.Path(config.tasks.seeds), [test_set.file for test_set in sources.sets]
    estimate = requests.tasks(config)
    yield Stage("tasks", ("datagen.tasks", *given), [seeds], tasks, estimate)
    flags = (f"--input={tasks}", f"--output={kept}", f"--against={','.join(map(str, files))}")
    yield Stage("dedup", ("datagen.dedup", *flags), [tasks, *files], kept)
    command, estimate = ("datagen.responses", *given, f"--input={kept}"), requests.responses
    yield Stage("responses", command, [kept], sources.examples, estimate(config, kept))


def sent(sources: Sources) -> Iterator[Stage]:
    """Copies of what the devices read, in their folder."""
    for path in (sources.examples, *(test_set.file for test_set in sources.sets)):
        if sources.far(path) != path:
            yield copy(f"send/{path.name.partition('.')[0]}", path, sources.far(path))


def copy(name: str, source: epath.Path, target: epath.Path) -> Stage:
    """A stage that copies a file to the devices' folder, or from it."""
    flags = (f"--source={source}", f"--target={target}")
    return Stage(name, ("launch.paper.transfer", *flags), [source], target)


def training(sources: Sources) -> Iterator[Stage]:
    """The systems that are trained here."""
    for system in (system for system in sources.systems if system.flags):
        command = ("alpacare_jax.train", *system.flags, f"--workdir={system.folder}")
        output, plan = system.folder / "run.json", planned(sources, system, "train")
        at = sources.config.devices.train_launcher
        yield Stage(f"train/{system.name}", command, system.inputs, output, plan, True, at)


def answers(sources: Sources) -> Iterator[Stage]:
    """The answers of every system here to every test set."""
    config, total = sources.config, sum(len(test_set.items) for test_set in sources.sets)
    for system in sources.systems:
        for test_set in sources.sets:
            near, source = sources.answers(system, test_set), sources.far(test_set.file)
            far = sources.devices / near.relative_to(sources.workdir)
            command = (
                *("alpacare_jax.generate", *system.model, f"--input={source}", f"--output={far}"),
                *(f"--mode={config.mode}", f"--generator={system.name}"),
                *shlex.split(config.flags.generate),
            )
            name = f"{system.name}/{test_set.name}"
            plan = planned(sources, system, "generate", len(test_set.items) / total)
            inputs, at = [source, system.folder], config.devices.generate_launcher
            yield Stage(f"generate/{name}", command, inputs, far, plan, True, at)
            if far != near:
                yield copy(f"fetch/{name}", far, near)


def references(sources: Sources) -> Iterator[Stage]:
    """Reference answers of models that are served today."""
    for test_set in sources.sets:
        for name, output in test_set.live.items():
            command = (
                *("evaluation.references", *overrides(EVALUATION, sources.config.live[name])),
                *(f"--benchmark={test_set.name}={test_set.file}", f"--generator={name}"),
                f"--workdir={output.parent}",
            )
            estimate = requests.references(sources.live[name], test_set.items)
            stage = f"references/{name}/{test_set.name}"
            yield Stage(stage, command, [test_set.file], output, estimate)


def judging(sources: Sources) -> Iterator[Stage]:
    """Every judge on every test set."""
    for judge, settings in sources.config.judges.items():
        for test_set in sources.sets:
            own = {s.name: sources.answers(s, test_set) for s in sources.systems}
            models = [*(f"{name}={file}" for name, file in own.items()), *test_set.imported]
            live = (f"{name}={file}" for name, file in test_set.live.items())
            compared = [*test_set.references, *live]
            folder = sources.workdir / "judged" / judge / test_set.name
            command = (
                *("evaluation.judge", *overrides(EVALUATION, settings)),
                f"--benchmark={test_set.name}={test_set.file}",
                *(f"--data={sources.config.published}", f"--outputs={','.join(models)}"),
                *(f"--references={','.join(compared)}", f"--workdir={folder}"),
            )
            inputs = [test_set.file, *own.values(), *test_set.live.values(), *test_set.published]
            pairs, output = len(models) * len(compared), folder / "judgements.jsonl"
            estimate = requests.judging(sources.judges[judge], test_set.items, pairs)
            yield Stage(f"judge/{judge}/{test_set.name}", command, inputs, output, estimate)


def served(sources: Sources) -> Iterator[Stage]:
    """Accuracy on questions with choices, and rubric scores: asked of a server of the system."""
    config, (judge, *_) = sources.config, sources.judges
    files, at = entries(config.choices), config.devices.generate_launcher
    for system in sources.systems:
        folder = sources.workdir / "choices" / system.name
        server = Server(system.folder, [*system.model, *shlex.split(config.flags.serve)])
        if files:
            flags = (f"--input={config.choices}", f"--workdir={folder}")
            command = ("evaluation.choices", *flags, *shlex.split(config.flags.choices))
            inputs, output = [*map(epath.Path, files), system.folder], folder / "choices.jsonl"
            estimate, name = requests.choices(files), f"choices/{system.name}"
            yield Stage(name, command, inputs, output, estimate, True, at, server)
        for file in entries(config.rubric):
            folder = sources.workdir / "rubric" / system.name / Path(file).name.partition(".")[0]
            flags = (f"--input={file}", f"--generator={system.name}", f"--workdir={folder}")
            given = (*overrides(EVALUATION, config.judges[judge]), *flags)
            command = ("evaluation.rubric", *given, *shlex.split(config.flags.rubric))
            inputs, output = [epath.Path(file), system.folder], folder / "grades.jsonl"
            estimate = requests.rubric(sources.judges[judge], file)
            name = f"rubric/{system.name}/{folder.name}"
            yield Stage(name, command, inputs, output, estimate, True, at, server)


def plans(sources: Sources) -> Iterator[Stage]:
    """What `alpacare_jax.plan` finds out for the dry run."""
    devices, items = sources.config.devices, sum(len(each.items) for each in sources.sets)
    price = [] if devices.price is None else [f"--price={devices.price}"]
    for system in (system for system in sources.systems if system.flags and devices.topology):
        number = requests.count(system.inputs[0], sources.datagen.tasks.num_tasks)
        work = {
            "train": [f"--num_examples={number}", f"--example_tokens={devices.example_tokens}"],
            "generate": [
                *("--generate", f"--prompts={items}", f"--new_tokens={devices.new_tokens}"),
                *(f"--slots={devices.slots}", *shlex.split(devices.generate)),
            ],
        }
        for what, flags in work.items():
            output = sources.workdir / "plans" / f"{what}-{system.name}.json"
            given = (*system.flags, f"--topology={devices.topology}", f"--output={output}")
            command = ("alpacare_jax.plan", *given, *price, *flags)
            yield Stage(f"plan/{what}/{system.name}", command, [], output)


def planned(sources: Sources, system: System, what: str, share: float = 1.0) -> Estimate:
    """A share of what the plan of a system says, if there is one."""
    path = sources.workdir / "plans" / f"{what}-{system.name}.json"
    return on_chips(provenance.read_json(path)["plan"] if path.exists() else {}, share)


def overrides(file: str, settings: Mapping[str, Any]) -> Sequence[str]:
    """The flags that make a config file's settings these."""
    usual = sections.flatten(cli.load_config(file))
    changed = {k: v for k, v in sections.flatten(settings).items() if usual.get(k) != v}
    return [f"--config={file}", *(f"--config.{k}={as_text(v)}" for k, v in changed.items())]
