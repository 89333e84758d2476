"""A model folder's tokenizer as the metadata of a GGUF file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alpacare_jax.data.tokenizers import Tokenizer
from alpacare_jax.formats import byte_level
from alpacare_jax.formats.gguf_file import BYTE, CONTROL, USER_DEFINED
from common import provenance

NORMAL, UNKNOWN, UNUSED = 1, 2, 5
"""Further token types of GGUF and of SentencePiece."""

WITHOUT_GGUF = "release without GGUF files: --gguf="

DIGITS = {"type": "Digits", "individual_digits": True}
LLAMA3_SPLIT = {"type": "Split", "pattern": {"Regex": byte_level.LLAMA3_PATTERN}}

PRE_TOKENIZERS = {
    "gpt-2": ([], True),
    "smollm": ([DIGITS], True),
    "llama-bpe": ([LLAMA3_SPLIT], False),
}
"""llama.cpp's names -> the steps of tokenizer.json before byte-level BPE, and whether that splits
by GPT-2's expression."""


def of_folder(folder: Path, tokenizer: Tokenizer, rows: int) -> dict[str, Any]:
    """`tokenizer.ggml.*` of `tokenizer`, which is that of `folder`, for `rows` embedding rows.

    Raises:
      ValueError: llama.cpp reads text otherwise than this tokenizer.
    """
    path, spec = folder / "tokenizer.json", {}
    if path.is_file():
        spec = provenance.read_json(path)
    tokens, types = [], []
    user_defined = {t["content"] for t in spec.get("added_tokens", ()) if not t.get("special")}
    sentencepiece = not spec or bool(spec["model"].get("byte_fallback"))
    scores, unknown, own = _scores(folder, spec) if sentencepiece else ({}, None, set())
    for token_id in range(rows):
        token, kind = tokenizer.pieces.get(token_id), NORMAL
        if token is None:
            token, kind = f"[PAD{token_id}]", UNUSED
        elif token == unknown:
            kind = UNKNOWN
        elif token_id in tokenizer.control_ids:
            kind = CONTROL
        elif sentencepiece and tokenizer.is_byte(token_id):
            kind = BYTE
        elif token in user_defined | own:
            token, kind = token.replace("▁", " ") if sentencepiece else token, USER_DEFINED
        tokens.append(token)
        types.append(kind)
    found = {"tokens": tokens, "token_type": types}
    if sentencepiece:
        values = [scores.get(token, 0.0) for token in tokens]
        return found | {"model": "llama", "pre": "default", "scores": values}
    merges = [m if isinstance(m, str) else " ".join(m) for m in spec["model"]["merges"]]
    return found | {"model": "gpt2", "pre": _pre_tokenizer(path, spec), "merges": merges}


def _scores(folder: Path, spec: Mapping[str, Any]) -> tuple[dict[str, float], str | None, set[str]]:
    """(score by token, unknown token, tokens that are matched whole) of SentencePiece's BPE.

    Without its model they follow from the merges: what is merged earlier has the higher score.
    """
    path = folder / "tokenizer.model"
    if not path.is_file():
        scores: dict[str, float] = {}
        for rank, merge in enumerate(spec["model"]["merges"]):
            pair = merge.split(" ") if isinstance(merge, str) else merge
            scores.setdefault("".join(pair), -float(rank))
        return scores, spec["model"].get("unk_token"), set()
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()  # pyright: ignore[reportAttributeAccessIssue]
    model.ParseFromString(path.read_bytes())
    if model.trainer_spec.model_type != model.trainer_spec.BPE:
        raise ValueError(f"{path} is not BPE, as llama.cpp requires; {WITHOUT_GGUF}")
    if model.normalizer_spec.precompiled_charsmap:
        name = model.normalizer_spec.name
        raise ValueError(f"{path} normalises text ({name}), llama.cpp does not; {WITHOUT_GGUF}")
    unknown = next((p.piece for p in model.pieces if p.type == UNKNOWN), None)
    own = {p.piece for p in model.pieces if p.type == USER_DEFINED}
    return {p.piece: p.score for p in model.pieces}, unknown, own


def _pre_tokenizer(path: Path, spec: Mapping[str, Any]) -> str:
    """llama.cpp's name of what splits a text before byte-level BPE."""
    section = spec.get("pre_tokenizer") or {}
    steps = section.get("pretokenizers", [section])
    before, last = steps[:-1], steps[-1]
    if spec.get("normalizer") is None and last.get("type") == "ByteLevel":
        for name, (known, splits) in PRE_TOKENIZERS.items():
            same = len(before) == len(known) and all(
                wanted.items() <= step.items() for wanted, step in zip(known, before, strict=True)
            )
            prefix = last.get("add_prefix_space", True)
            if same and last.get("use_regex", True) == splits and not prefix:
                return name
    raise ValueError(
        f"{path} splits text in a way for which llama.cpp has no name here; known are "
        f"{', '.join(PRE_TOKENIZERS)} and SentencePiece's; {WITHOUT_GGUF}"
    )
