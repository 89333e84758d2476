"""No text inside thought marks becomes a task, an example, a reference or a verdict."""

import dataclasses
import itertools
import json
import os
import string
import tempfile
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from datagen import responses, tasks
from datagen.chat import attempts
from evaluation import judge, references
from evaluation.judge import JudgingRun
from evaluation.references import ReferenceSettings
from tests.datagen import test_tasks
from tests.evaluation import test_judge
from tests.support import chat_runs, teacher
from tests.support.chat_server import ChatServer, openai_reply

SECRET = "ZQX"
"""Stands in every thought, and nowhere else."""

DRAFT = """
###
1. Type: {0}
Topic: {0}
View: {0}
Difficulty: 1
Instruction: Explain {0} and what it does to a patient who has it.
Input: {0}
Output (a)
[[A]]
"""

MARKS = [
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<THINK >", "</Think>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("&lt;think&gt;", "&lt;/think&gt;"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<unused94>thought\n", "<unused95>"),
    ("<|channel>thought\n", "<channel|>"),
    ("<think>", "</thinking>"),
]


@dataclasses.dataclass(frozen=True)
class Thinking:
    """How a model leaves its thoughts in a reply."""

    style: str
    marks: tuple[str, str]
    thought: str
    position: float

    def reply(self, answer: str) -> dict:
        """A reply with this answer and the thoughts."""
        opening, closing = self.marks
        block = f"{opening}{self.thought}{closing}"
        cut = round(self.position * len(answer))
        text = {
            "before": f"{block}\n\n{answer}",
            "within": f"{answer[:cut]}{block}{answer[cut:]}",
            "twice": f"{block}{answer[:cut]}{block}{answer[cut:]}{block}",
            "open": f"{answer}{opening}{self.thought}",
            "lone": f"{self.thought}{closing}{answer}",
            "nested": f"{opening}{self.thought}{opening}{self.thought}{closing}{answer}",
            "closed twice": f"{block}{self.thought}{closing}{answer}",
            "nothing else": block,
            "harmony": f"<|channel|>analysis<|message|>{self.thought}<|end|><|start|>assistant"
            f"<|channel|>final<|message|>{answer}<|return|>",
            "harmony, cut": f"<|channel|>analysis<|message|>{self.thought}",
        }.get(self.style, answer)
        reply = openai_reply(text)
        message = reply["choices"][0]["message"]
        if self.style == "field":
            message["reasoning_content"] = self.thought
        elif self.style == "parts":
            thought = {"type": "thinking", "thinking": [{"type": "text", "text": self.thought}]}
            message["content"] = [thought, {"type": "text", "text": answer}]
        return reply

    @property
    def is_answer(self) -> bool:
        return self.style not in ("nothing else", "harmony, cut")


STYLES = "before within twice open lone nested field parts harmony plain".split() + [
    "closed twice",
    "nothing else",
    "harmony, cut",
]
words = st.text(string.ascii_letters + string.digits + " \n.,:;#*-()'\"", max_size=60)
thoughts = words.map(lambda text: f"{text}{DRAFT.format(SECRET)}{text}{SECRET}")
thinking = st.builds(
    Thinking, st.sampled_from(STYLES), st.sampled_from(MARKS), thoughts, st.floats(0.0, 1.0)
)


DRAWS = settings(
    max_examples=int(os.environ.get("ALPACARE_THOUGHT_DRAWS", "6")),
    deadline=None,
    phases=(Phase.explicit, Phase.generate),  # to shrink a run of 40 replies takes minutes
)
"""Each draw is a run of some 30 replies."""


@pytest.fixture(scope="module")
def server():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attempts, "INITIAL_BACKOFF", 0.001)
        patch.setattr(attempts, "MAX_BACKOFF", 0.002)
        server = ChatServer()
        yield server
        server.close()


def serve(server, drawn, answer):
    """Gives the thoughts out in turn; first an answer, or the run ends for want of one."""
    numbers = itertools.count()
    order = sorted(drawn, key=lambda thinking: not thinking.is_answer)

    def reply(body):
        number = next(numbers)
        thinking = order[number] if number < len(order) else dataclasses.replace(order[0], style="")
        return 200, thinking.reply(answer(body)), {}

    server.error = reply


def texts(folder, *names):
    return "".join((folder / name).read_text(encoding="utf-8") for name in names)


@DRAWS
@given(drawn=st.lists(thinking, min_size=25, max_size=40))
def test_thoughts_stay_out_of_all_data(server, drawn):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        serve(server, drawn, teacher.write_tasks)
        config = test_tasks.make_config(
            server,
            tasks__num_tasks=100,
            teacher__concurrency=1,
            responder__base_url=f"{server.url}/v1",
            responder__concurrency=1,
            responder__attempts=1,
        )
        tasks.run(config, folder, dry_run=False)
        assert SECRET not in texts(folder, "tasks.jsonl", "rejected.jsonl")

        serve(server, drawn, lambda body: "Gout is caused by urate crystals.")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(responses, "require_answers", lambda *_: None)
            responses.run(config, folder / "tasks.jsonl", folder, dry_run=False)
        assert SECRET not in texts(folder, "examples.jsonl", "unused.jsonl")
        outputs = {example["output"] for example in test_tasks.read(folder / "examples.jsonl")}
        assert outputs == {"Gout is caused by urate crystals."}


def questions(folder, count):
    lines = [{"id": str(i), "instruction": f"Question {i}?"} for i in range(count)]
    for name in ("set", "model-7B", "gpt"):
        added = {"output": f"Yes, says {name}.", "generator": name}
        records = (json.dumps(line | added) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text("".join(records))


@DRAWS
@given(drawn=st.lists(thinking, min_size=25, max_size=40))
def test_thoughts_stay_out_of_references_and_verdicts(server, drawn):
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        for command in (references, judge):
            patch.setattr(command, "require_answers", lambda *_: None)
        folder = Path(name)
        questions(folder, len(drawn))
        serve(server, drawn, lambda body: "Rest, and drink water.")
        chat = chat_runs.make_config(server, concurrency=1, attempts=1)
        benchmark = f"set={folder / 'set.jsonl'}"
        references.run_ask(
            ReferenceSettings(chat, "plain", ""), benchmark, folder, folder / "r", dry_run=False
        )
        assert SECRET not in texts(folder / "r", "references.jsonl")

        serve(server, drawn, lambda body: "Tie")
        config = test_judge.make_config(server, reasks=0, concurrency=1, attempts=1)
        judging = JudgingRun(
            config,
            benchmark=benchmark,
            outputs_from=[str(folder / "model-7B.jsonl")],
            references_from=[str(folder / "gpt.jsonl")],
            data=folder,
        )
        judge.run(judging, folder / "j")
        judgements = test_tasks.read(folder / "j" / "judgements.jsonl")
        assert SECRET not in texts(folder / "j", "judgements.jsonl")
        verdicts = [line["verdict"] for line in judgements]
        assert set(verdicts) <= {"tie", "invalid"}, "a thought says (a)"
        assert verdicts.count("invalid") == sum(not thinking.is_answer for thinking in drawn)
