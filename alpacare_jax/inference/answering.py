"""The texts of a model's answers: from its engine, cut at stop strings, turn by turn."""

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from alpacare_jax.data.chat_template import ChatTemplate
from alpacare_jax.data.encoding import encode_prompt
from alpacare_jax.data.prompts import Template
from alpacare_jax.data.tokenizers import Tokenizer
from alpacare_jax.inference import answer_file
from alpacare_jax.inference.engine import Engine
from alpacare_jax.inference.requests import Request
from alpacare_jax.inference.text_stream import TextStream, cut_at_stop
from common.messages import StatusLine, duration
from common.records import Example


def answers(
    engine: Engine,
    requests: Sequence[Request],
    tokenizer: Tokenizer,
    stops: Sequence[str],
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(index, answer fields of the output) of each request as it finishes; reports progress."""
    began, done, tokens, status = time.perf_counter(), 0, 0, StatusLine()

    def report() -> None:
        seconds = time.perf_counter() - began
        left = duration(seconds / max(done, 1) * (len(requests) - done))
        rest = f"{left} left" if done else f"{duration(seconds)} so far"
        status.show(
            f"{done}/{len(requests)} answers | {tokens:,} tokens | {tokens / seconds:,.0f} "
            f"tokens/s | {rest}"
        )

    def stop_early(ids: list[int]) -> bool:
        if status.due():  # it is called after every step, also before the first answer
            report()
        return bool(stops) and cut_at_stop(tokenizer.decode(ids, continuation=True), stops)[1]

    for done, answer in enumerate(engine.run(requests, stop_early), start=1):
        stream = TextStream(tokenizer, stops, strip=True)
        text = stream.feed(answer.ids) + stream.close()
        reason = "stop" if stream.stopped else answer.finish_reason
        yield answer.index, {"output": text, "finish_reason": reason, "num_tokens": stream.used}
        tokens += stream.used
        if done == len(requests):
            report()
    status.close()


def converse(
    engine: Engine,
    asked: Mapping[int, Example],
    tokenizer: Tokenizer,
    template: Template | ChatTemplate,
    stops: Sequence[str],
    max_new_tokens: int,
) -> Iterator[tuple[int, Example, dict[str, Any]]]:
    """(index, example, answer fields of the output) of each answer as it is done.

    Conversations with several questions go through the engine once for each, with the model's own
    answers before it; the answer to an example with `further` questions is a turn of them.
    """
    while asked:
        requests: list[Request] = []
        for index, example in asked.items():
            ids = encode_prompt(example, tokenizer, template)
            if len(ids) < engine.max_length:
                requests.append(Request(index, ids, max_new_tokens))
            else:
                ended = dataclasses.replace(example, further=())
                yield index, ended, answer_file.NO_ANSWER
        following: dict[int, Example] = {}
        for index, answer in answers(engine, requests, tokenizer, stops) if requests else ():
            yield index, asked[index], answer
            if asked[index].further:
                following[index] = asked[index].following(answer["output"])
        asked = following
