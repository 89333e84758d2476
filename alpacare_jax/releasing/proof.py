"""That a release answers as the model does here: weights, settings, and greedy answers.

Equal are two answers with the same tokens to the end. Programs add numbers in different orders, and
llama.cpp rounds what it multiplies to float16; so where our two likeliest tokens are closer than
twice the TOLERANCES of log-probabilities, either may come next: a near tie. An answer that parts
from ours there, and nowhere before, is counted as one; any other difference is a fault.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from alpacare_jax.checkpoints import model_folder
from alpacare_jax.data import tokenizers
from alpacare_jax.formats import hf_weights
from alpacare_jax.model import params, rope
from alpacare_jax.model.llama import Params
from alpacare_jax.releasing import gguf_writer, modelfile, programs
from alpacare_jax.releasing.programs import LlamaCpp, ProgramReply, Trained, Transformers
from common import provenance

TOLERANCES = {"transformers": 1e-3, "F16": 0.1}
"""Largest error of a log-probability: several times what was measured on SmolLM2 (5e-5, 0.015)."""

UNCHANGED = tuple(
    name
    for name in tokenizers.TOKENIZER_FILES
    if not name.startswith(("chat_", "tokenizer_config"))
)
"""Files of a release that are the model's own, to the byte."""

Q8_ERROR = 0.6 / 127
"""Of a number in Q8_0, in units of the largest of its 32: half a step, and the scale's rounding."""


class ReleaseError(ValueError):
    """A release is not what was trained."""


@dataclasses.dataclass
class AnswerAgreement:
    """How far a program's answers agree with ours."""

    answers: int = 0
    equal: int = 0
    near_ties: int = 0
    different: int = 0
    tokens: int = 0  # compared: up to the first difference of each answer
    largest_error: float = 0.0  # of a log-probability

    def add(self, ours: ProgramReply, theirs: ProgramReply, tolerance: float) -> None:
        """Counts an answer."""
        pairs = zip(ours.ids, theirs.ids, strict=False)
        at = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
        compared = len(ours.ids) if at is None else at + 1
        errors = map(programs.logprob_error, ours.top[:compared], theirs.top[:compared])
        self.largest_error = max(self.largest_error, *errors)
        self.answers, self.tokens = self.answers + 1, self.tokens + compared
        if at is None and (len(ours.ids), ours.ended) == (len(theirs.ids), theirs.ended):
            self.equal += 1
            return
        likely = ours.top[at] if at is not None else {}
        gap = likely[ours.ids[at or 0]] - likely.get(theirs.ids[at or 0], -np.inf) if likely else 1
        self.near_ties += gap <= 2 * tolerance
        self.different += gap > 2 * tolerance


def require(fine: bool, text: str) -> None:
    """Raises ReleaseError with `text` unless all is fine."""
    if not fine:
        raise ReleaseError(f"{text}; nothing was released")


def check_folder(trained: Trained, weights: Params, folder: Path) -> None:
    """Raises ReleaseError unless settings, tokenizer and every weight are those that were trained.

    The dtype of the weights is the release's.
    """
    config = model_folder.read_config(trained.folder)
    released = dataclasses.replace(
        model_folder.read_config(folder), eos_token_ids=config.eos_token_ids
    )
    require(released == config, "config.json is not that of the model")
    for name in UNCHANGED:
        ours, theirs = epath.Path(trained.folder) / name, folder / name
        same = ours.is_file() == theirs.is_file()
        if same and ours.is_file():
            same = provenance.sha256(ours) == provenance.sha256(theirs)
        require(same, f"{name} is not that of the model")
    expected, flat = hf_weights.by_key(config), params.flatten(weights)
    tensors, _ = hf_weights.tensors(hf_weights.files(folder))
    require({t.key for t in tensors} == expected.keys(), "the keys of the weights are others")
    for tensor in tensors:
        weight, layer = expected[tensor.key]
        array = flat[weight.path] if layer is None else flat[weight.path][layer]
        array = params.to_hf_layout(weight, np.asarray(array), config)
        require(
            np.array_equal(tensor.read().astype(np.float32), array),
            f"{tensor.key} is not as it was trained",
        )


def check_gguf(path: Path, folder: Path, form: str, settings: gguf_writer.Settings) -> None:
    """Raises ReleaseError unless a GGUF file has the metadata and weights of a folder."""
    import gguf

    config, reader = model_folder.read_config(folder), gguf.GGUFReader(path)
    for key, value in gguf_writer.metadata(folder, form, settings).items():
        field = reader.get_field(key)
        found = None if field is None else field.contents()
        stored = _float32(value)
        require(found == stored, f"{path.name}: {key} is {found!r:.80}, not {stored!r:.80}")
    stored = {tensor.name: tensor for tensor in reader.tensors}
    if config.rope_scaling:
        divisors = stored.pop(gguf_writer.ROPE_DIVISORS, None)
        same = divisors is not None and np.array_equal(
            divisors.data, gguf_writer.rope_divisors(config)
        )
        require(same, f"{path.name}: {gguf_writer.ROPE_DIVISORS} is missing or another")
    tensors, _ = hf_weights.tensors(hf_weights.files(folder))
    names = {gguf_writer.tensor_name(tensor.key): tensor for tensor in tensors}
    require(stored.keys() == names.keys(), f"{path.name}: the names of the weights are others")
    for name, tensor in names.items():
        found = gguf.dequantize(stored[name].data, stored[name].tensor_type)
        if heads := gguf_writer.rotated_heads(tensor.key, config):
            found = rope.split_halves(found, heads)
        same = _holds(found, tensor.read(), stored[name].tensor_type.name)
        require(same, f"{path.name}: {name} is not {tensor.key}")


def _float32(value: Any) -> Any:
    """A value of metadata as a file holds it."""
    if isinstance(value, float):
        return float(np.float32(value))
    return [_float32(each) for each in value] if isinstance(value, list) else value


def _holds(found: np.ndarray, array: np.ndarray, kind: str) -> bool:
    """Whether `found`, of a tensor of type `kind`, is `array` but for the rounding of that type."""
    array = array.astype(np.float32)
    if found.shape != array.shape:
        return False
    if kind != "Q8_0":
        return np.array_equal(found, array.astype(np.float16 if kind == "F16" else np.float32))
    blocks = array.reshape(-1, gguf_writer.SCALED_TOGETHER)
    error = np.abs(found.reshape(blocks.shape) - blocks)
    return bool((error <= Q8_ERROR * np.abs(blocks).max(-1, keepdims=True) + 1e-7).all())


def check_modelfile(text: str, name: str, program: LlamaCpp, trained: Trained) -> None:
    """Raises ReleaseError unless Ollama would ask the file `name` as the model was trained."""
    question = "Why is the sky blue?"
    gguf, template, stops = modelfile.read(text)
    require(gguf == name, f"the Modelfile is of {gguf}, not of {name}")
    require(stops == list(trained.template.stop), f"the Modelfile has the stops {stops}")
    ids = program.tokenize(template.replace(modelfile.IN_PLACE_OF_PROMPT, question))
    require(ids == trained.prompt(question), "the Modelfile's template is not the trained one")


def compare(
    name: str,
    program: Transformers | LlamaCpp,
    trained: Trained,
    questions: Sequence[str],
    expected: Sequence[ProgramReply],
    max_new_tokens: int,
) -> AnswerAgreement:
    """What a program answers, compared with what we answer.

    Raises:
      ReleaseError: it reads a question otherwise, does not stop where training ended answers, or,
        where `name` has a tolerance, answers otherwise.
    """
    for question, reply in zip(questions, expected, strict=True):
        ids = program.prompt(question)
        at = next((i for i, (a, b) in enumerate(zip(ids, reply.prompt, strict=False)) if a != b), 0)
        require(
            ids == list(reply.prompt),
            f"{name} reads a question as other tokens: from number {at} on {ids[at : at + 8]}, not "
            f"{list(reply.prompt[at : at + 8])} (template, BOS or tokenizer)",
        )
    for token_id in trained.end_ids:
        reply = program.reply(questions[0], 4, forced=token_id)
        piece = trained.tokenizer.piece(token_id)
        require(
            list(reply.ids) == [token_id] and reply.ended,
            f"{name} does not stop at {piece} (id {token_id}), which ends an answer",
        )
    found, tolerance = AnswerAgreement(), TOLERANCES.get(name, 0.0)
    for question, reply in zip(questions, expected, strict=True):
        found.add(reply, program.reply(question, max_new_tokens), tolerance)
    if tolerance:
        require(
            found.largest_error <= tolerance,
            f"{name}: log-probabilities differ by {found.largest_error:.2g}, over {tolerance:g}",
        )
        require(not found.different, f"{name} answers {found.different} questions otherwise")
    return found


def prove(
    trained: Trained,
    folder: Path,
    ggufs: Mapping[str, Path],
    settings: gguf_writer.Settings,
    questions: Sequence[str],
    max_new_tokens: int,
) -> Iterator[tuple[str, AnswerAgreement]]:
    """Yields each program's agreement; `ggufs` has the GGUF file of each type.

    Raises:
      ReleaseError: the release is not the model; what differs is named.
    """
    weights = trained.params()
    check_folder(trained, weights, folder)
    for form, path in ggufs.items():
        check_gguf(path, folder, form, settings)
    expected = programs.ours(trained, weights, questions, max_new_tokens)
    del weights  # transformers takes as much memory
    theirs = Transformers(folder)
    require(
        theirs.end_ids == set(trained.end_ids),
        f"generation_config.json ends answers at {sorted(theirs.end_ids)}, training ended them at "
        f"{sorted(trained.end_ids)}",
    )
    require(
        theirs.stop_strings == list(trained.template.stop),
        f"generation_config.json has the stop_strings {theirs.stop_strings}",
    )
    arguments = (trained, questions, expected, max_new_tokens)
    yield "transformers", compare("transformers", theirs, *arguments)
    del theirs
    length = max(len(reply.prompt) for reply in expected) + max_new_tokens + 1
    for form, path in ggufs.items():
        with programs.llama_cpp(path, length) as program:
            if form == next(iter(ggufs)):
                text = (folder / "Modelfile").read_text(encoding="utf-8")
                check_modelfile(text, path.name, program, trained)
            yield form, compare(form, program, *arguments)
