"""Requests to judges, for each pair of answers in both orders, and the verdicts they return.

`ask` asks graders of single answers, too (evaluation.grading.grader).
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

from common.jsonl import Record
from common.messages import format_counts
from datagen.chat.client import Client
from datagen.chat.config import ChatRequest
from datagen.chat.errors import Failure
from datagen.chat.replies import ChatAnswer
from evaluation.inputs.benchmarks import Item
from evaluation.inputs.outputs import ModelOutput
from evaluation.judgements.verdicts import ORDERS, Verdict, shown
from evaluation.judging.judges import Judge
from evaluation.judging.parsers import Preference


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One judge on two answers to one item, shown in one order."""

    judge: Judge
    item: Item
    model: ModelOutput
    reference: ModelOutput
    order: str

    @property
    def judge_name(self) -> str:
        """The judge's name."""
        return self.judge.name

    def request(self, sample: int = 0) -> ChatRequest:
        """The request to the judge; `sample` 1, 2, ... asks again."""
        answers = shown(self.order, self.model.output, self.reference.output)
        return self.judge.request(self.item.text, *answers, sample)

    def verdict(self, answer: ChatAnswer) -> Verdict:
        """The verdict in the judge's reply."""
        first, second = shown(self.order, Verdict.MODEL, Verdict.REFERENCE)
        return {
            Preference.FIRST: first,
            Preference.SECOND: second,
            Preference.TIE: Verdict.TIE,
            Preference.INVALID: Verdict.INVALID,
        }[self.judge.preference(answer)]


class JudgeQuestion(Protocol):
    """What `ask` asks: a Comparison, or a grading of one answer."""

    @property
    def judge_name(self) -> str:
        """The judge or grader."""
        ...

    def request(self, sample: int = 0) -> ChatRequest:
        """The request; `sample` 1, 2, ... asks again."""
        ...

    def verdict(self, answer: ChatAnswer) -> str:
        """The verdict in a reply; Verdict.INVALID where it states none."""
        ...


@dataclasses.dataclass(frozen=True)
class Reply:
    """The last reply of a judge to a question."""

    answer: ChatAnswer | None = None  # None: no reply yet
    asked: int = 0  # number of replies so far
    verdict: str = Verdict.INVALID
    failure: Failure | None = None  # why the last request got no answer


def pair(
    judges: Sequence[Judge],
    items: Sequence[Item],
    models: Sequence[Sequence[ModelOutput]],
    references: Sequence[Sequence[ModelOutput]],
) -> list[Comparison]:
    """Every judge x reference x model x item x order, the last changing fastest.

    `models` and `references` hold the outputs of each system, in the order of the items.
    """
    return [
        Comparison(judge, item, output, reference_output, order)
        for judge in judges
        for reference in references
        for model in models
        for item, output, reference_output in zip(items, model, reference, strict=True)
        for order in ORDERS
    ]


MAX_SILENT_REPLIES = 20
"""Replies of a judge, from its first on, without a verdict, after which the run ends."""


async def ask(
    client: Client, questions: Sequence[JudgeQuestion], reasks: int, replies: list[Reply]
) -> None:
    """Fills in a reply to each question: the first with a verdict, or the last of 1 + `reasks`.

    Raises:
      RunStoppedError: as Client.stream; what has arrived is stored.
      ValueError: none of the first `MAX_SILENT_REPLIES` replies of a judge states a verdict.
    """
    found: dict[str, Counter[str]] = {question.judge_name: Counter() for question in questions}
    waiting = list(range(len(questions)))
    for sample in range(1 + reasks):
        if sample and waiting:
            client.report(f"{len(waiting):,} replies state no verdict; asking again")
        requests = ((index, questions[index].request(sample)) for index in waiting)
        async for index, outcome in client.stream(requests, len(waiting)):
            if isinstance(outcome, Failure):
                replies[index] = dataclasses.replace(replies[index], failure=outcome)
            else:
                verdict = questions[index].verdict(outcome)
                replies[index] = Reply(outcome, sample + 1, verdict)
                name = questions[index].judge_name
                found[name][verdict] += 1
                if (
                    found[name] == {Verdict.INVALID: MAX_SILENT_REPLIES}
                    and not client.config.offline
                ):
                    raise ValueError(_no_verdict(name, outcome))
        waiting = [
            index
            for index in waiting
            if replies[index].verdict == Verdict.INVALID and not replies[index].failure
        ]


def _no_verdict(judge: str, answer: ChatAnswer) -> str:
    return (
        f"none of the first {MAX_SILENT_REPLIES} replies to {judge} states a verdict; one of them, "
        f"which ends with {answer.finish_reason}: {answer.text[-200:]!r}; choose a model that "
        "follows the prompt, or raise chat.max_tokens; docs/judging.md says what is read"
    )


def names(comparison: Comparison, model: str) -> dict[str, str]:
    """The fields that identify a judgement; a judge is a prompt with the judging `model`."""
    return {
        "id": comparison.item.id,
        "benchmark": comparison.item.benchmark,
        "generator": comparison.model.generator,
        "reference": comparison.reference.generator,
        "judge": f"{comparison.judge.name}/{model}",
        "order": comparison.order,
    }


def judgement(comparison: Comparison, reply: Reply, model: str) -> Record:
    """A line of judgements.jsonl."""
    answer = reply.answer
    return names(comparison, model) | {
        "verdict": reply.verdict,
        "raw": answer.text if answer else "",
        "prompt_version": comparison.judge.version,
        "usage": usage(answer),
        "asked": reply.asked,
    }


def usage(answer: ChatAnswer | None) -> dict[str, int] | None:
    """The tokens of a reply, as a line about it records them."""
    return answer and {"input_tokens": answer.input_tokens, "output_tokens": answer.output_tokens}


def count(compared: Sequence[Comparison], replies: Sequence[Reply]) -> dict[str, Any]:
    """Counts for run.json; verdicts are counted by judge."""
    verdicts: dict[str, Counter[str]] = {}
    for comparison, reply in zip(compared, replies, strict=True):
        verdicts.setdefault(comparison.judge.name, Counter())[reply.verdict] += 1
    return {
        "judgements": len(replies),
        "verdicts": {name: dict(found.most_common()) for name, found in verdicts.items()},
    } | count_replies(replies)


def count_replies(replies: Sequence[Reply]) -> dict[str, Any]:
    """Why replies have no verdict, how many were asked again, and which models replied."""
    answers = [reply.answer for reply in replies if reply.answer]
    invalid = [r.answer for r in replies if r.answer and r.verdict == Verdict.INVALID]
    finished = Counter(answer.finish_reason for answer in invalid)
    return {
        "asked_again": sum(reply.asked > 1 for reply in replies),
        "invalid": {
            "no verdict": len(invalid) - finished["length"] - finished["refusal"],
            "cut at max_tokens": finished["length"],
            "refused by the model": finished["refusal"],
            "without reply": len(replies) - len(answers),
        },
        "served_by": dict(Counter(answer.model for answer in answers).most_common()),
    }


def summary(counts: dict[str, Any]) -> str:
    """The counts as lines of text."""
    lines = [f"{name}: {format_counts(found)}" for name, found in counts["verdicts"].items()]
    lines += reasked(counts)
    lines += [
        f"reference {name}: {cut:,} of {counts['items']:,} answers appear truncated"
        for name, cut in counts["cut_references"].items()
        if cut
    ]
    lines += [
        f"{name}: {empty:,} of {counts['items']:,} answers are empty, and judged as they are"
        for name, empty in counts["empty_answers"].items()
        if empty
    ]
    return "\n".join(lines)


def reasked(counts: dict[str, Any]) -> list[str]:
    """What `count_replies` found, in a line if there is anything to say."""
    if not (counts["asked_again"] or any(counts["invalid"].values())):
        return []
    invalid = format_counts(counts["invalid"])
    return [f"{counts['asked_again']:,} asked more than once; invalid: {invalid}"]
