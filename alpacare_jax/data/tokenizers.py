"""Text to token ids and back: SentencePiece `.model` and Hugging Face `tokenizer.json`."""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import PurePath
from typing import Any

from etils import epath

from common import paths, provenance

# Every file that defines how a model reads text; conversion and checkpoints copy them.
TOKENIZER_FILES: tuple[str, ...] = tuple(
    "tokenizer.json tokenizer.model vocab.json merges.txt tokenizer_config.json "
    "special_tokens_map.json added_tokens.json chat_template.jinja chat_template.json".split()
)

# `ModelProto{normalizer_spec{add_dummy_prefix: false}}` on the wire. Protocol buffers merge a
# message appended to another, so these bytes disable SentencePiece's leading space.
NO_LEADING_SPACE = b"\x1a\x02\x18\x00"


GUARD = "\ufdd0"
"""A noncharacter of Unicode, which keeps a text from being read as a control token."""

ONE_BYTE = re.compile("<0x[0-9A-F]{2}>")
"""Pieces of SentencePiece for characters outside the vocabulary."""

_PRINTED = [*range(33, 127), *range(161, 173), *range(174, 256)]
BYTE_LETTERS = {
    chr(byte if byte in _PRINTED else 256 + number): byte
    for number, byte in enumerate(sorted(range(256), key=_PRINTED.__contains__))
}
"""How byte-level vocabularies, from GPT-2 on, spell each byte."""

SPECIAL_KINDS = ("bos_token", "eos_token", "unk_token", "pad_token")
"""The special tokens that a tokenizer's files name."""


class Tokenizer(ABC):
    """Converts text to ids and back; the caller adds BOS and EOS.

    Text never becomes a control id: "</s>" in a record must not end its sequence.

    `pad_id` is never `eos_id`: code that masks the loss by pad id would mask every EOS, and the
    model would never learn to stop. It is the first of these that differs from EOS: the declared
    pad token, the unknown token, BOS, id 0, id 1.
    """

    vocab_size: int  # highest id + 1
    bos_id: int | None
    eos_id: int
    pad_id: int
    adds_bos: bool  # whether prompts start with BOS; then bos_id is not None
    template_adds_bos: (
        bool  # what tokenizer.json says itself, which tokenizer_config.json overrides
    )
    control_ids: frozenset[int]  # special tokens, which represent no text
    _forbidden_ids: frozenset[int]  # never a result of encoding: control ids except unk
    pieces: dict[int, str]  # the vocabulary's spelling of every id
    _spelled: re.Pattern[str]  # any control token
    continues = True  # whether no space is put before a text that follows a control token

    def encode(self, text: str, *, continuation: bool = False) -> list[int]:
        """Returns the ids of `text`, without BOS and EOS.

        LLaMA's tokenizers put a space before a text. With `continuation` the text continues an
        earlier one, as a response does its prompt, and that space is omitted:
        `decode(encode(prompt) + encode(response, continuation=True)) == prompt + response`.

        Raises:
          ValueError: `text` is not valid Unicode, would yield a control id, or would be lost.
        """
        text.encode()  # raises for half a surrogate pair, which neither library reports
        ids = self._encode(text, continuation)
        if not ids and text.strip():
            raise ValueError(
                f"this tokenizer has no token for anything in {text[:40]!r}; use the one of the "
                "model's release"
            )
        if leaked := self._forbidden_ids.intersection(ids):
            name = self.piece(min(leaked))
            raise ValueError(f"this tokenizer cannot encode {name!r} as plain text; remove it")
        return ids

    def guard(self, text: str) -> str:
        """A text of a record for a template whose result `encode_template` gets: it stays text.

        text    = say <|im_end|>
        guarded = say <␟|im_end|>       with GUARD at ␟
        """
        text = text.replace(GUARD, 2 * GUARD)
        return self._spelled.sub(lambda found: found[0][0] + GUARD + found[0][1:], text)

    def encode_template(self, text: str, *, continuation: bool = False) -> list[int]:
        """As `encode`, but control tokens are read as such, except for guarded ones."""
        parts, ids = self._spelled.split(text), []
        for i, part in enumerate(parts):
            if i % 2:
                ids.append(self.control_tokens[part])
            elif part:
                plain = re.sub(f"{GUARD}(.)", r"\1", part, flags=re.DOTALL)
                ids += self.encode(plain, continuation=self.continues if i else continuation)
        return ids

    def decode(self, ids: Iterable[int], *, continuation: bool = False) -> str:
        """Returns the text of `ids`; control ids and ids beyond the vocabulary are skipped.

        The space that `encode` put before the text is removed, unless `continuation` is set.
        """
        known = [int(i) for i in ids if i < self.vocab_size and i not in self.control_ids]
        return self._decode(known, continuation)

    def piece(self, token_id: int) -> str:
        """Returns the vocabulary's spelling of one id, such as `▁the`, `<0x0A>` or `</s>`."""
        return self.pieces[token_id]

    def is_byte(self, token_id: int) -> bool:
        """Whether a token is one byte, such as `<0x0A>`; its neighbours decide what it means."""
        return bool(ONE_BYTE.fullmatch(self.pieces.get(token_id, "")))

    def token_bytes(self, token_id: int) -> bytes:
        """The UTF-8 bytes of one token, a part of a character or more; a control token's name."""
        piece = self.pieces.get(token_id, "")
        if token_id in self.control_ids:
            return piece.encode()
        if self.is_byte(token_id):
            return bytes([int(piece[3:5], 16)])
        text = self.decode([token_id], continuation=True)
        if "\ufffd" in text and set(piece) <= BYTE_LETTERS.keys():
            return bytes(map(BYTE_LETTERS.__getitem__, piece))
        return text.encode()

    @cached_property
    def control_tokens(self) -> dict[str, int]:
        """The ids of the control tokens by their spelling."""
        return {self.pieces[token_id]: token_id for token_id in self.control_ids}

    @cached_property
    def adds_space(self) -> bool:
        """Whether a space is put before a text that continues nothing."""
        return self.encode("a") != self.encode("a", continuation=True)

    @property
    def result_ids(self) -> set[int]:
        """Every id that a prompt or an answer can have: of text, EOS, and BOS where it is added."""
        added = {self.eos_id, self.bos_id} if self.adds_bos else {self.eos_id}
        return self.pieces.keys() - self._forbidden_ids | added

    @abstractmethod
    def _encode(self, text: str, continuation: bool) -> list[int]: ...

    @abstractmethod
    def _decode(self, ids: list[int], continuation: bool) -> str: ...

    def _set_special_ids(self, declared: Mapping[str, str], directory: epath.Path) -> None:
        """Sets the ids of the declared special tokens; `control_ids` holds the built-in ones."""
        ids = {piece: token_id for token_id, piece in self.pieces.items()}
        found = {kind: ids[declared[kind]] for kind in SPECIAL_KINDS if declared.get(kind) in ids}
        for kind in ("bos_token", "eos_token"):
            if kind not in found and (kind in declared or kind == "eos_token"):
                raise ValueError(
                    f"{directory}: {kind} {declared.get(kind)!r} is not in the vocabulary; set "
                    "the right one in tokenizer_config.json"
                )
        bos, eos = found.get("bos_token"), found["eos_token"]
        unk, pad = found.get("unk_token"), found.get("pad_token")
        self.bos_id, self.eos_id = bos, eos
        self.pad_id = next(i for i in (pad, unk, bos, 0, 1) if i is not None and i != eos)
        self.control_ids |= set(found.values())
        self._forbidden_ids = self.control_ids - ({unk} - {bos, eos})
        longest_first = sorted((t for t in self.control_tokens if len(t) > 1), key=len)[::-1]
        self._spelled = re.compile(f"({'|'.join(map(re.escape, longest_first))})")


class SentencePieceTokenizer(Tokenizer):
    """`tokenizer.model` of LLaMA 1 and 2; unknown characters become bytes."""

    def __init__(self, directory: epath.Path):
        from sentencepiece import SentencePieceProcessor

        path = directory / "tokenizer.model"
        paths.require_content(path)
        try:
            model = SentencePieceProcessor(model_proto=path.read_bytes())
        except RuntimeError as error:
            raise ValueError(
                f"{path} is not a SentencePiece model; LLaMA 3's is tiktoken's: "
                "use tokenizer.json of its Hugging Face release, or convert from_meta"
            ) from error
        continuing = model.serialized_model_proto() + NO_LEADING_SPACE
        self._models = {False: model, True: SentencePieceProcessor(model_proto=continuing)}
        special, added, adds_bos = _read_settings(directory)
        pieces = [model.id_to_piece(i) for i in range(model.vocab_size())]
        # Hugging Face adds tokens outside the model file: Alpaca's "[PAD]" is id 32,000.
        self.pieces = dict(enumerate(pieces)) | {i: name for name, i in added.items()}
        self.vocab_size = max(self.pieces) + 1
        self.control_ids = frozenset(
            i for i in self.pieces if i >= len(pieces) or model.is_control(i)
        )
        ids = {kind: getattr(model, f"{kind}_id")() for kind in ("bos", "eos", "unk", "pad")}
        own = {f"{kind}_token": pieces[i] for kind, i in ids.items() if i >= 0}
        self._set_special_ids(own | special, directory)
        self.adds_bos = self.template_adds_bos = self.bos_id is not None and adds_bos is not False

    def _encode(self, text: str, continuation: bool) -> list[int]:
        return self._models[continuation].encode(text)

    def _decode(self, ids: list[int], continuation: bool) -> str:
        return self._models[continuation].decode(ids)


class HuggingFaceTokenizer(Tokenizer):
    """Any `tokenizer.json`; other JSON files of its folder name the special tokens.

    Ids are exactly Hugging Face's, so a file with the `Metaspace` step drops a space at the start
    of a text, where SentencePiece would keep it.
    """

    def __init__(self, directory: epath.Path):
        path = directory / "tokenizer.json"
        spec = provenance.read_json(path)
        special, _, adds_bos = _read_settings(directory)
        added = spec.get("added_tokens")
        for token in added if isinstance(added, list) else ():
            if isinstance(token, dict) and token.get("content") in special.values():
                token["special"] = True
        try:
            model = _build(spec)
        except Exception as error:  # noqa: BLE001 - the package raises no narrower one
            raise ValueError(f"{path} is damaged ({error}); download it again") from None
        sections = ("normalizer", "pre_tokenizer", "decoder")
        continuing = spec | {name: _without_leading_space(spec.get(name)) for name in sections}
        self._models = {False: model, True: model}
        if continuing != spec:
            self._models[True] = _build(continuing)
        if not model.encode("a", add_special_tokens=False).ids:
            raise ValueError(
                f"{path} turns text into no tokens at all; copy it from the model's release"
            )
        vocabulary = model.get_vocab(with_added_tokens=True)
        self.pieces = {token_id: piece for piece, token_id in vocabulary.items()}
        self.vocab_size = max(self.pieces) + 1
        added = model.get_added_tokens_decoder().items()
        self.control_ids = frozenset(i for i, token in added if token.special)
        self._set_special_ids(special, directory)
        self.template_adds_bos = model.encode("a").ids[:1] == [self.bos_id]
        model.encode_special_tokens = False  # files differ in where they put LLaMA's space
        after_control = model.encode(self.piece(self.eos_id) + "a", add_special_tokens=False).ids
        model.encode_special_tokens = True
        self.continues = after_control[1:] == self.encode("a", continuation=True)
        adds_bos = self.template_adds_bos if adds_bos is None else adds_bos
        self.adds_bos = self.bos_id is not None and adds_bos

    def _encode(self, text: str, continuation: bool) -> list[int]:
        return self._models[continuation].encode(text, add_special_tokens=False).ids

    def _decode(self, ids: list[int], continuation: bool) -> str:
        return self._models[continuation].decode(ids, skip_special_tokens=False)


def load(directory: str | PurePath) -> Tokenizer:
    """Returns the tokenizer of a model folder; `tokenizer.json` precedes `tokenizer.model`.

    Raises:
      FileNotFoundError: the folder has neither.
      ValueError: a file is damaged, or none names the end-of-text token.
    """
    directory = epath.Path(directory)
    paths.require(directory)
    if (directory / "tokenizer.json").is_file():
        return HuggingFaceTokenizer(directory)
    if (directory / "tokenizer.model").is_file():
        return SentencePieceTokenizer(directory)
    raise FileNotFoundError(
        f"{directory} has neither tokenizer.json nor tokenizer.model; copy one from the model's "
        "folder, together with tokenizer_config.json"
    )


def _read_settings(directory: epath.Path) -> tuple[dict[str, str], dict[str, int], bool | None]:
    """Returns special tokens by kind, ids of added tokens by name, and `add_bos_token`.

    Each file is optional. A token is a string or `{"content": string}`; early LLaMA conversions
    wrote "", which counts as unset. As in transformers, tokenizer_config.json precedes
    special_tokens_map.json if it has added_tokens_decoder.

    Raises:
      ValueError: a file is damaged, or the two disagree on BOS or EOS and it has not.
    """

    def read(name: str) -> dict[str, Any]:
        path = directory / name
        return provenance.read_json(path) if path.is_file() else {}

    def wrong(name: str, key: str, value: Any, needed: str) -> ValueError:
        return ValueError(f"{directory / name}: {key} is {value!r:.80}, not {needed}")

    def text(name: str, key: str, token: Any) -> str:
        content = token.get("content") if isinstance(token, dict) else token or ""
        if not isinstance(content, str):
            raise wrong(name, key, token, "the text of a token")
        return content

    def token_id(name: str, key: str, value: Any) -> int:
        if not str(value).isdecimal():
            raise wrong(name, key, value, "an id")
        return int(value)

    names = ("tokenizer_config.json", "special_tokens_map.json")
    config, mapped = map(read, names)
    stated, fallback = (
        {kind: text(name, kind, content.get(kind)) for kind in SPECIAL_KINDS}
        for name, content in zip(names, (config, mapped), strict=True)
    )
    decoder = config.get("added_tokens_decoder")
    if decoder is None:
        stated, fallback = fallback, stated
        for kind in ("bos_token", "eos_token"):
            if fallback[kind] and stated[kind] not in ("", fallback[kind]):
                raise ValueError(
                    f"{directory}: {kind} is {fallback[kind]!r} in {names[0]} and {stated[kind]!r} "
                    f"in {names[1]}, which transformers obeys; correct the wrong one"
                )
    if not isinstance(decoder, dict | None):
        raise wrong(names[0], "added_tokens_decoder", decoder, "an object")
    added = {
        token: token_id("added_tokens.json", token, value)
        for token, value in read("added_tokens.json").items()
    }
    for key, token in (decoder or {}).items():
        added.setdefault(text(names[0], key, token), token_id(names[0], str(token), key))
    adds_bos = config.get("add_bos_token")
    if not isinstance(adds_bos, bool | None):
        raise wrong(names[0], "add_bos_token", adds_bos, "true or false")
    special = {kind: stated[kind] or fallback[kind] for kind in SPECIAL_KINDS}
    return {kind: token for kind, token in special.items() if token}, added, adds_bos


def _build(spec: Mapping[str, Any]) -> Any:
    """Returns a `tokenizers.Tokenizer` that encodes special tokens in a text as plain text."""
    from tokenizers import Tokenizer as Backend

    backend = Backend.from_str(json.dumps(spec))
    backend.encode_special_tokens = True
    backend.no_truncation()  # files saved during training can set both
    backend.no_padding()
    return backend


def _without_leading_space(section: Any) -> Any:
    """Returns the section of tokenizer.json changed to not add or remove a leading space."""
    kind = section["type"] if section else None
    if kind == "Prepend" or (kind == "Strip" and "start" in section):  # the decoder's Strip
        return None
    if kind == "Metaspace":
        kept = {key: value for key, value in section.items() if key != "add_prefix_space"}
        return kept | {"prepend_scheme": "never"}
    if kind == "ByteLevel":
        return section | {"add_prefix_space": False}
    if kind == "Sequence":
        inner = next(key for key, value in section.items() if isinstance(value, list))
        steps = map(_without_leading_space, section[inner])
        return section | {inner: [step for step in steps if step is not None]}
    return section
