"""Byte-level BPE as the content of a `tokenizer.json`, made from GGUF's or tiktoken's vocabularies.

LLaMA 3's `tokenizer.model` is tiktoken's: a line for each token, its bytes in base64 and its rank.
"""

import base64
import binascii
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Splits text before byte-level BPE, from LLaMA 3's tokenizer.json."""

TIKTOKEN_LINE = re.compile(rb"([A-Za-z0-9+/]+=*) ([0-9]+)\r?\n?")

NUM_CONTROLS = 256
"""Control tokens of LLaMA 3, behind its vocabulary; those without a name here are reserved."""

CONTROLS = {
    0: "begin_of_text",
    1: "end_of_text",
    6: "start_header_id",
    7: "end_header_id",
    9: "eot_id",
}
CONTROLS_3_1 = CONTROLS | {4: "finetune_right_pad_id", 8: "eom_id", 10: "python_tag"}


def control_tokens(scaled: bool) -> list[str]:
    """The control tokens of LLaMA 3, or with `scaled` RoPE of 3.1 and later, in the order of ids.

    (transformers convert_llama_weights_to_hf.py)
    """
    named = CONTROLS_3_1 if scaled else CONTROLS
    spare = (f"reserved_special_token_{i}" for i in range(NUM_CONTROLS))
    return [f"<|{named[i] if i in named else next(spare)}|>" for i in range(NUM_CONTROLS)]


def is_tiktoken(path: Path) -> bool:
    """Whether a file is a vocabulary of tiktoken's, by its first line."""
    with path.open("rb") as file:
        return TIKTOKEN_LINE.fullmatch(file.readline(1000)) is not None


def _letters() -> dict[int, str]:
    """How byte-level BPE spells each byte: printable ones as they are, others from U+0100 on.

    (GPT-2 encoder.py)
    """
    plain = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {b: chr(256 + i) for i, b in enumerate(others)}


def read_tiktoken(path: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """(vocabulary, merges) of a tiktoken file, spelled as tokenizer.json does.

    tiktoken joins the neighbours that make the token of the lowest rank, so every way to cut a
    token in two others is a merge of its rank, as in transformers:

        ranks  = {a: 0, b: 1, ab: 2, abb: 3, bb: 4}
        merges = [a b, ab b, a bb, b b]

    Raises:
      ValueError: a line is damaged, or the ranks are not 0, 1, 2 ...
    """
    lines = path.read_bytes().splitlines()
    try:
        rows = [TIKTOKEN_LINE.fullmatch(line).groups() for line in lines]  # pyright: ignore[reportOptionalMemberAccess]
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in rows}
    except (AttributeError, binascii.Error):
        ranks = {}
    if not ranks or list(ranks.values()) != list(range(len(lines))):
        raise ValueError(f"{path} is damaged: not tiktoken's form; download it again") from None
    letters = _letters()

    def spelled(token: bytes) -> str:
        return "".join(map(letters.__getitem__, token))

    merges = []
    for token in ranks:
        cuts = ((token[:i], token[i:]) for i in range(1, len(token)))
        known = [(ranks[a], ranks[b], a, b) for a, b in cuts if a in ranks and b in ranks]
        merges += [(spelled(a), spelled(b)) for *_, a, b in sorted(known)]
    return {spelled(token): rank for token, rank in ranks.items()}, merges


def tokenizer_json(
    vocab: Mapping[str, int],
    merges: Iterable[Sequence[str]],
    special: Sequence[str],
    *,
    llama3: bool,
    bos: str = "",
) -> dict[str, Any]:
    """The content of a `tokenizer.json`.

    Args:
      llama3: LLaMA 3's pattern and way with whole words; else SmolLM2's, which are GPT-2's but for
        digits, each of which is a token.
      bos: put before a text; "" for nothing.

    Raises:
      ValueError: the vocabulary is damaged.
    """
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, processors

    # LLaMA 3 takes a word that is a token as it is, also where no merges lead to it.
    try:
        model = models.BPE(dict(vocab), [(a, b) for a, b in merges], ignore_merges=llama3)
    except Exception as error:  # noqa: BLE001 - the package raises no narrower one
        raise ValueError(f"the vocabulary is damaged ({error})") from None
    tokenizer = tokenizers.Tokenizer(model)
    if llama3:
        split = pre_tokenizers.Split(tokenizers.Regex(LLAMA3_PATTERN), "isolated")
    else:
        split = pre_tokenizers.Digits(individual_digits=True)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not llama3)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    if bos:
        tokens = [(bos, tokenizer.token_to_id(bos))]
        tokenizer.post_processor = processors.TemplateProcessing(f"{bos} $A", special_tokens=tokens)
    return json.loads(tokenizer.to_str())
