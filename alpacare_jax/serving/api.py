"""The endpoints: from a request's body to the engine and back, whole or streamed."""

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from alpacare_jax.inference.requests import NOT_FINITE, NOT_FINITE_MESSAGE
from alpacare_jax.inference.requests import Request as EngineRequest
from alpacare_jax.serving import fields, json_answers, protocol
from alpacare_jax.serving.choice import AnswerChoice, Delta, ScoredToken
from alpacare_jax.serving.errors import ApiError
from alpacare_jax.serving.gate import read_body, unless_disconnected
from alpacare_jax.serving.monitoring import Monitor
from alpacare_jax.serving.protocol import ChatCall, CompletionCall
from alpacare_jax.serving.replies import DONE, ResponseForm, encode, event
from alpacare_jax.serving.served_model import EncodedPrompt, ServedModel
from alpacare_jax.serving.worker import FAILED, EngineThread, Job
from common import exits

IGNORED_FIELDS = "x-fields-without-effect"
"""The header that names the fields of a request that change nothing."""


class EventStream(StreamingResponse):
    """Server-sent events, which no proxy may hold back; the source is closed at the end."""

    media_type = "text/event-stream"

    async def stream_response(self, send: Any) -> None:
        """Sends the events."""
        async with contextlib.aclosing(self.body_iterator):  # pyright: ignore[reportArgumentType]
            await super().stream_response(send)


@dataclasses.dataclass(frozen=True)
class Work:
    """A call that is ready for the engine."""

    call: ChatCall | CompletionCall
    reply: ResponseForm
    prompts: list[EncodedPrompt]
    choices: list[AnswerChoice]  # of the first prompt, then of the second ...
    requests: list[EngineRequest]  # one for each choice; the engine's thread numbers them


class Api:
    """The endpoints of a model.

    What takes long, as many log-probabilities do, is done in other threads: streams go on.

    Args:
      max_body: bytes of a request.
      seconds: until an answer must be complete.
      log_texts: whether prompts and answers are in the log.
    """

    def __init__(
        self,
        model: ServedModel,
        thread: EngineThread,
        monitor: Monitor,
        *,
        max_body: int,
        seconds: float,
        log_texts: bool,
    ):
        self._model, self._thread, self._monitor = model, thread, monitor
        self._max_body, self._seconds, self._log_texts = max_body, seconds, log_texts

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        return await self._answer(request, self._chat_work)

    async def completion(self, request: Request) -> Response:
        """POST /v1/completions."""
        return await self._answer(request, self._completion_work)

    async def template(self, request: Request) -> Response:
        """POST /apply-template: the text that the model reads for `messages`."""
        body = await read_body(request, self._max_body)
        _, prompt = await asyncio.to_thread(self._chat, body, self._model.name)
        found = {"prompt": self._model.shown(prompt), "tokens": len(prompt.ids)}
        return Response(encode(found), media_type="application/json")

    async def models(self, request: Request) -> Response:
        """GET /v1/models and /v1/models/{model}."""
        found = self._model.describe()
        if "model" in request.path_params:
            self._model.check_name(request.path_params["model"])
        else:
            found = {"object": "list", "data": [found]}
        return Response(encode(found), media_type="application/json")

    async def health(self, request: Request) -> Response:
        """GET /health."""
        del request
        if self._thread.failed.is_set():
            raise ApiError(503, FAILED)
        found = {"status": "ok", "running": self._thread.running, "waiting": self._thread.waiting}
        return Response(encode(found), media_type="application/json")

    async def metrics(self, request: Request) -> Response:
        """GET /metrics."""
        del request
        return Response(self._monitor.metrics(), media_type="text/plain; version=0.0.4")

    async def _answer(self, request: Request, make: Callable[[bytes], Work]) -> Response:
        deadline = asyncio.get_running_loop().time() + self._seconds
        body = await read_body(request, self._max_body)
        work = await asyncio.to_thread(make, body)  # long prompts take time; streams go on
        details = request.state.details
        details |= {"prompt_tokens": work.reply.prompt_tokens, "answers": len(work.choices)}
        details["stream"] = work.call.options.stream
        if self._log_texts:
            details["prompts"] = [self._model.shown(prompt) for prompt in work.prompts]
        job = self._thread.submit(work.requests)
        self._monitor.prompts(work.reply.prompt_tokens)
        ignored = work.call.options.ignored
        headers = {IGNORED_FIELDS: ", ".join(ignored)} if ignored else {}
        deltas = self._deltas(work, job, deadline, details)
        if work.call.options.stream:
            headers["x-accel-buffering"] = "no"  # else nginx holds events back
            return EventStream(self._events(work, deltas, details), headers=headers)
        found = await unless_disconnected(request, self._whole(work, deltas))
        return Response(found, headers=headers, media_type="application/json")

    def _chat(self, body: bytes, name: str | None = None) -> tuple[ChatCall, EncodedPrompt]:
        """A chat and its prompt; `name` is the model's where the body has none."""
        content = {"model": name} | fields.read_json(body)
        call = protocol.chat_call(content, self._model.vocab_size)
        self._model.check_name(call.options.model)
        return call, self._model.chat_prompt(call.history, call.question)

    def _chat_work(self, body: bytes) -> Work:
        call, prompt = self._chat(body)
        stops = (*self._model.template.stop, *call.options.stop)

        def choose(number: int, prompt: EncodedPrompt) -> AnswerChoice:
            return AnswerChoice(number, self._model.tokenizer, prompt.ids, stops=stops, strip=True)

        return self._work(call, [prompt], choose)

    def _completion_work(self, body: bytes) -> Work:
        call = protocol.completion_call(fields.read_json(body), self._model.vocab_size)
        self._model.check_name(call.options.model)
        self._thread.require_possible(len(call.prompts) * call.options.n)
        prompts = [self._model.completion_prompt(prompt) for prompt in call.prompts]

        def choose(number: int, prompt: EncodedPrompt) -> AnswerChoice:
            return AnswerChoice(
                number,
                self._model.tokenizer,
                prompt.ids,
                stops=call.options.stop,
                echo=prompt.text if call.echo else None,
                unsent=prompt.unsent,
                tell_eos=True,  # harnesses count the last token, whatever it is
            )

        return self._work(call, prompts, choose)

    def _work(
        self,
        call: ChatCall | CompletionCall,
        prompts: list[EncodedPrompt],
        choose: Callable[[int, EncodedPrompt], AnswerChoice],
    ) -> Work:
        options, is_chat = call.options, isinstance(call, ChatCall)
        echoes = isinstance(call, CompletionCall) and call.echo
        choices: list[AnswerChoice] = []
        requests: list[EngineRequest] = []
        for prompt in prompts:
            field = "messages" if is_chat else "prompt"
            room = self._model.room(prompt, options.max_tokens, field)
            scored = echoes and options.logprobs is not None
            for draw in range(options.n):
                choices.append(choose(len(choices), prompt))
                requests.append(
                    EngineRequest(
                        index=0,
                        prompt=prompt.ids,
                        max_new_tokens=room,
                        sampling=options.sampling,
                        logprobs=options.logprobs,
                        prompt_logprobs=scored or room == 0,  # without a token, all there is to do
                        draw=draw,
                    )
                )
        reply = ResponseForm(
            self._model.tokenizer,
            self._model.name,
            chat=is_chat,
            prompt_tokens=sum(len(prompt.ids) for prompt in prompts),
            logprobs=options.logprobs,
            include_usage=options.include_usage,
        )
        return Work(call, reply, prompts, choices, requests)

    async def _deltas(
        self, work: Work, job: Job, deadline: float, details: dict[str, Any]
    ) -> AsyncIterator[tuple[AnswerChoice, Delta]]:
        """What is new of each choice, until all have ended; then nothing of them is left behind."""
        left = set(range(len(work.choices)))
        texts = [""] * len(work.choices)
        try:
            while left:
                try:
                    async with asyncio.timeout_at(deadline):
                        update = await job.updates.get()
                except TimeoutError:
                    raise self._late() from None
                if isinstance(update, ApiError):
                    raise update
                number, progress = update
                if number not in left:
                    continue  # what the engine had under way when a stop string ended it
                if progress.finish_reason == NOT_FINITE:
                    raise ApiError(500, NOT_FINITE_MESSAGE)
                choice = work.choices[number]
                feed, is_long = partial(choice.feed, progress), bool(progress.prompt_logprobs)
                delta = await asyncio.to_thread(feed) if is_long else feed()
                texts[number] += delta.text
                if delta.finish_reason:
                    left.remove(number)
                    self._thread.cancel([job.indices[number]])
                    self._monitor.answer(delta.finish_reason)
                yield choice, delta
                if delta.finish_reason:
                    await _check_json(work.call, texts[number], delta.finish_reason)
        finally:
            self._thread.cancel([job.indices[number] for number in left])
            details["completion_tokens"] = sum(choice.stream.used for choice in work.choices)
            details["finish_reasons"] = [choice.finish_reason for choice in work.choices]
            if self._log_texts:
                details["texts"] = texts

    def _late(self) -> ApiError:
        return ApiError(
            504,
            f"the answer was not complete within {self._seconds:,.0f} s; ask for fewer tokens, or "
            "start the server with more --request_seconds",
            code="timeout",
        )

    async def _whole(self, work: Work, deltas: AsyncIterator[tuple[AnswerChoice, Delta]]) -> bytes:
        texts: list[str] = [""] * len(work.choices)
        tokens: list[list[ScoredToken]] = [[] for _ in work.choices]
        async with contextlib.aclosing(deltas):  # pyright: ignore[reportArgumentType]
            async for choice, delta in deltas:
                texts[choice.number] += delta.text
                tokens[choice.number] += delta.tokens
        parts = list(zip(work.choices, texts, tokens, strict=True))
        return await asyncio.to_thread(lambda: encode(work.reply.whole(parts)))

    async def _events(
        self,
        work: Work,
        deltas: AsyncIterator[tuple[AnswerChoice, Delta]],
        details: dict[str, Any],
    ) -> AsyncIterator[bytes]:
        """The events of a stream; an error is its last, and [DONE] is not sent then."""
        begun: set[int] = set()
        try:
            async with contextlib.aclosing(deltas):  # pyright: ignore[reportArgumentType]
                async for choice, delta in deltas:
                    chunk = partial(work.reply.chunk, choice, delta)
                    chunks = await asyncio.to_thread(chunk) if delta.tokens else chunk()
                    if choice.number not in begun:
                        begun.add(choice.number)
                        chunks = [*work.reply.first(choice), *chunks]
                    if chunks:
                        yield b"".join(map(event, chunks))
            yield b"".join(map(event, work.reply.last(work.choices))) + DONE
        except ApiError as error:
            details["error"] = error.kind
            yield event(error.body())
        except Exception as error:  # noqa: BLE001 - the status is sent; the stream must say so
            details["cause"] = exits.unexpected(error)
            yield event(ApiError(500, "internal error; the server's log has more").body())


async def _check_json(call: ChatCall | CompletionCall, text: str, finish_reason: str) -> None:
    """Raises ApiError, which holds the answer, if it is not the JSON that was asked for."""
    if not isinstance(call, ChatCall) or not call.json:
        return
    # In another thread: however long it takes, other streams go on.
    if problem := await asyncio.to_thread(json_answers.answer_problem, text, call.schema):
        cause = "; it was cut at max_tokens" if finish_reason == "length" else ""
        raise ApiError(
            422,
            f"{problem}{cause}; ask for JSON in the message, with more max_tokens, or leave out "
            "response_format",
            param="response_format",
            code="invalid_json",
            more={"answer": text},
        )
