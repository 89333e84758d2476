"""The same questions to three programs: our engine, transformers and llama.cpp.

Each gets the text of a user and does the rest by what is released: template, BOS, tokens, weights,
what ends an answer. Answers are greedy; log-probabilities are the model's own.
"""

import contextlib
import dataclasses
import importlib
import json
import os
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alpacare_jax.checkpoints import checkpoint, model_folder
from alpacare_jax.data.chat_template import ChatTemplate
from alpacare_jax.data.encoding import encode_prompt
from alpacare_jax.data.prompts import Template
from alpacare_jax.data.tokenizers import Tokenizer
from alpacare_jax.inference.engine import Engine
from alpacare_jax.inference.requests import Request
from alpacare_jax.model.llama import Params
from common.records import Example

TOP = 20
"""Most likely tokens whose log-probabilities are compared."""

FORCED = 10_000.0
"""Added to a logit so that its token comes next."""

SLOTS = 8


@dataclasses.dataclass(frozen=True)
class ProgramReply:
    """What a program made of a question."""

    prompt: Sequence[int]
    ids: Sequence[int]  # of the answer, with the token that ended it
    ended: bool  # by a token that ends answers, not by their greatest length
    top: Sequence[Mapping[int, float]]  # for each of `ids`, log-probabilities of the likeliest


@dataclasses.dataclass(frozen=True)
class Trained:
    """The model as it was trained, in the dtype in which it is released."""

    folder: PurePath
    step: str
    dtype: str
    tokenizer: Tokenizer
    template: Template | ChatTemplate
    end_ids: Sequence[int]  # what ends an answer, that of training first

    def prompt(self, question: str) -> list[int]:
        """The ids of a question as `train` and `generate` make them."""
        return encode_prompt(Example("", question, "", ""), self.tokenizer, self.template)

    def params(self) -> Params:
        """The weights, rounded to the released dtype, in float32."""
        config, dtype = model_folder.read_config(self.folder), jnp.dtype(self.dtype)
        params = checkpoint.load_params(self.folder, config, step=self.step, dtype=dtype)
        return jax.tree.map(lambda array: array.astype(jnp.float32), params)


def ours(
    trained: Trained, params: Params, questions: Sequence[str], max_new_tokens: int
) -> list[ProgramReply]:
    """The engine's answers, in float32."""
    prompts = [trained.prompt(question) for question in questions]
    ids: list[list[int]] = [[] for _ in prompts]
    top: list[list[Mapping[int, float]]] = [[] for _ in prompts]
    ended = [False] * len(prompts)
    engine = Engine(
        params,
        model_folder.read_config(trained.folder),
        dtype=jnp.dtype(jnp.float32),
        eos_ids=trained.end_ids,
        max_length=max(map(len, prompts)) + max_new_tokens,
        slots=min(SLOTS, len(prompts)),
    )
    with jax.default_matmul_precision("highest"):
        for index, prompt in enumerate(prompts):
            engine.submit(Request(index, prompt, max_new_tokens, logprobs=TOP))
        while engine.busy:
            for progress in engine.step():
                progress.require_finite()
                end = [] if progress.eos_id is None else [progress.eos_id]
                ids[progress.index] += [*progress.ids, *end]
                top[progress.index] += [dict(scores.top) for scores in progress.logprobs]
                ended[progress.index] |= bool(end)
    return [ProgramReply(*reply) for reply in zip(prompts, ids, ended, top, strict=True)]


class Transformers:
    """A folder as transformers opens it, computing in float32."""

    def __init__(self, folder: Path):
        """Raises ValueError if the weights are not those of config.json."""
        import torch
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        opened: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True
        )
        model, loading = opened
        if odd := [*loading["missing_keys"], *loading["unexpected_keys"]]:
            raise ValueError(f"transformers finds no place for, or lacks, {', '.join(sorted(odd))}")
        self._model = model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
        self._greedy = self._model.generation_config
        self.stop_strings = list(self._greedy.stop_strings or ())
        end = self._greedy.eos_token_id
        self.end_ids = set(end if isinstance(end, list) else [end])
        usual = transformers.GenerationConfig()
        for name in ("temperature", "top_k", "top_p", "repetition_penalty", "stop_strings"):
            setattr(self._greedy, name, getattr(usual, name))
        self._greedy.do_sample = False

    def prompt(self, question: str) -> list[int]:
        """The ids that the folder's chat template makes of a question."""
        messages = [{"role": "user", "content": question}]
        ids = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=True
        )["input_ids"]
        return [int(token_id) for token_id in ids]

    def reply(self, question: str, max_new_tokens: int, forced: int | None = None) -> ProgramReply:
        """The answer to a question; `forced` is a token that the answer begins with."""
        import torch

        prompt = self.prompt(question)
        ids = torch.tensor([prompt], device=self._model.device)
        bias = {} if forced is None else {"sequence_bias": [[[forced], FORCED]]}
        with torch.no_grad():
            made = self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=max_new_tokens,
                output_logits=True,
                return_dict_in_generate=True,
                **bias,
            )
        answer = made.sequences[0, len(prompt) :].tolist()
        top = []
        for row in made.logits:
            found = torch.log_softmax(row[0], -1).topk(min(TOP, row.shape[-1]))
            top.append(dict(zip(found.indices.tolist(), found.values.tolist(), strict=True)))
        return ProgramReply(prompt, answer, answer[-1] in self.end_ids, top)


class LlamaCpp:
    """A GGUF file as llama.cpp's server opens it; see `llama_cpp`."""

    def __init__(self, address: str):
        self._address = address

    def _post(self, path: str, **content: Any) -> dict[str, Any]:
        data = json.dumps(content).encode()
        request = urllib.request.Request(
            f"{self._address}{path}", data, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    def _text(self, question: str) -> str:
        messages = [{"role": "user", "content": question}]
        return self._post("/apply-template", messages=messages)["prompt"]

    def prompt(self, question: str) -> list[int]:
        """The ids that the file's chat template makes of a question."""
        return self.tokenize(self._text(question))

    def tokenize(self, text: str) -> list[int]:
        """The ids of a text with control tokens, behind BOS if the file adds one."""
        return self._post("/tokenize", content=text, add_special=True, parse_special=True)["tokens"]

    def complete(self, prompt: str | list[int], **settings: Any) -> dict[str, Any]:
        """What the server makes of a prompt."""
        return self._post("/completion", prompt=prompt, **settings)

    def reply(self, question: str, max_new_tokens: int, forced: int | None = None) -> ProgramReply:
        """As `Transformers.reply`."""
        bias = [] if forced is None else [[forced, FORCED]]
        made = self.complete(
            self._text(question),
            n_predict=max_new_tokens,
            temperature=0,
            n_probs=TOP,
            return_tokens=True,
            cache_prompt=False,
            logit_bias=bias,
        )
        # The server has no probabilities of a token that leaves a character unfinished.
        ids, scored, top = made["tokens"], made.get("completion_probabilities", []), []
        ended = made["stop_type"] == "eos"
        if ended and scored and ids[-1:] != [scored[-1]["id"]]:
            ids.append(scored[-1]["id"])
        for token_id in reversed(ids):
            found = scored.pop() if scored and scored[-1]["id"] == token_id else {}
            top.append({t["id"]: t["logprob"] for t in found.get("top_logprobs", ())})
        return ProgramReply(self.prompt(question), ids, ended, top[::-1])


@contextlib.contextmanager
def llama_cpp(path: Path, length: int) -> Iterator[LlamaCpp]:
    """Serves a GGUF file on this machine for texts of `length` tokens.

    Raises:
      ValueError: llama.cpp cannot open the file.
    """
    xllamacpp: Any = importlib.import_module("xllamacpp")  # its names are not known to checkers
    settings = xllamacpp.CommonParams()
    settings.model.path = str(path)
    settings.n_ctx, settings.n_parallel, settings.warmup = length, 1, False
    settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    settings.verbosity = -1
    for threads in (settings.cpuparams, settings.cpuparams_batch):
        # Its threads spin while they wait, so that on a busy machine more of them are slower.
        threads.n_threads = max(1, (os.cpu_count() or 2) // 2)
    try:
        server = xllamacpp.Server(settings)
    except RuntimeError as error:
        raise ValueError(f"llama.cpp cannot open {path.name}: {error}") from None
    program = LlamaCpp(server.listening_address)
    program.complete([0], n_predict=1)  # a server that ends before it has begun never ends
    try:
        yield program
    finally:
        del server


def logprob_error(a: Mapping[int, float], b: Mapping[int, float]) -> float:
    """The largest difference of two programs' log-probabilities of the next token.

    Of the tokens among the likeliest of both; the last of these may be any of many.
    """
    if not a or not b:  # a program that does not report them
        return 0.0
    return max((abs(a[t] - b[t]) for t in a.keys() & b.keys()), default=float(np.inf))


def release_memory() -> None:
    """Forgets compiled programs, so that the next program has the memory."""
    jax.clear_caches()
