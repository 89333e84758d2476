"""What a judge is asked, in both orders, and what comes of its replies."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

from common.jsonl import Record
from common.messages import format_counts
from datagen.chat.client import Client, Failure
from datagen.chat.config import ChatRequest
from datagen.chat.store import ChatAnswer
from evaluation.inputs.benchmarks import Item
from evaluation.inputs.outputs import ModelOutput
from evaluation.judging.judges import Judge
from evaluation.judging.parsers import INVALID
from evaluation.judging.verdicts import MODEL, ORDERS, REFERENCE, VERDICTS

MODEL_FIRST, REFERENCE_FIRST = ORDERS


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One judge on two answers to one item, shown in one order."""

    judge: Judge
    item: Item
    model: ModelOutput
    reference: ModelOutput
    order: str

    def request(self, sample: int = 0) -> ChatRequest:
        shown = self.model.output, self.reference.output
        if self.order == REFERENCE_FIRST:
            shown = shown[::-1]
        return self.judge.request(self.item.text, *shown, sample)

    def verdict(self, answer: ChatAnswer) -> str:
        """model, reference, tie or invalid."""
        sides = VERDICTS[MODEL], VERDICTS[REFERENCE]
        if self.order == REFERENCE_FIRST:
            sides = sides[::-1]
        said = self.judge.verdict(answer)
        return {"first": sides[0], "second": sides[1]}.get(said, said)


@dataclasses.dataclass(frozen=True)
class Reply:
    """The last that a judge said to a comparison."""

    answer: ChatAnswer | None = None  # None: it has never answered
    asked: int = 0  # times that it has answered
    verdict: str = INVALID
    failure: str = ""  # why the last request got no answer


def pair(
    judges: Sequence[Judge],
    items: Sequence[Item],
    models: Sequence[Sequence[ModelOutput]],
    references: Sequence[Sequence[ModelOutput]],
) -> list[Comparison]:
    """Every judge x reference x model x item x order, the last changing fastest.

    Args:
      models, references: for each system its outputs, in the order of the items.
    """
    return [
        Comparison(judge, item, output, reference, order)
        for judge in judges
        for theirs in references
        for mine in models
        for item, output, reference in zip(items, mine, theirs, strict=True)
        for order in (MODEL_FIRST, REFERENCE_FIRST)
    ]


async def ask(
    client: Client, comparisons: Sequence[Comparison], reasks: int, replies: list[Reply]
) -> None:
    """Fills in a reply to each: the first with a verdict, or the last of 1 + `reasks`.

    Raises:
      RunStoppedError: as Client.stream; what has come is stored.
    """
    waiting = list(range(len(comparisons)))
    for sample in range(1 + reasks):
        if sample and waiting:
            client.report(f"{len(waiting):,} replies hold no verdict; asking again")
        requests = ((index, comparisons[index].request(sample)) for index in waiting)
        async for index, outcome in client.stream(requests, len(waiting)):
            if isinstance(outcome, Failure):
                replies[index] = dataclasses.replace(replies[index], failure=outcome.reason)
            else:
                verdict = comparisons[index].verdict(outcome)
                replies[index] = Reply(outcome, sample + 1, verdict)
        waiting = [i for i in waiting if replies[i].verdict == INVALID and not replies[i].failure]


def names(comparison: Comparison, model: str) -> dict[str, str]:
    """What tells a judgement from every other one; with `model`, a prompt is a judge."""
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
        "usage": answer
        and {"input_tokens": answer.input_tokens, "output_tokens": answer.output_tokens},
        "asked": reply.asked,
    }


def count(compared: Sequence[Comparison], replies: Sequence[Reply]) -> dict[str, Any]:
    """Counts for run.json; verdicts are told apart by judge."""
    verdicts: dict[str, Counter] = {}
    for comparison, reply in zip(compared, replies, strict=True):
        verdicts.setdefault(comparison.judge.name, Counter())[reply.verdict] += 1
    answers = [reply.answer for reply in replies if reply.answer]
    invalid = [reply.answer for reply in replies if reply.answer and reply.verdict == INVALID]
    finished = Counter(answer.finish_reason for answer in invalid)
    return {
        "judgements": len(replies),
        "verdicts": {name: dict(found.most_common()) for name, found in verdicts.items()},
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
    """The counts as lines for a person."""
    lines = [f"{name}: {format_counts(found)}" for name, found in counts["verdicts"].items()]
    if counts["asked_again"] or any(counts["invalid"].values()):
        lines.append(
            f"{counts['asked_again']:,} asked more than once; "
            f"invalid: {format_counts(counts['invalid'])}"
        )
    lines += [
        f"reference {name}: {cut:,} of {counts['items']:,} answers seem cut"
        for name, cut in counts["cut_references"].items()
        if cut
    ]
    return "\n".join(lines)
