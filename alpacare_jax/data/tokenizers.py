"""Text to token ids and back: SentencePiece `.model` and Hugging Face `tokenizer.json`."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

from etils import epath

# Every file that defines how a model reads text; conversion and checkpoints copy them.
TOKENIZER_FILES: tuple[str, ...] = tuple(
    "tokenizer.json tokenizer.model vocab.json merges.txt tokenizer_config.json "
    "special_tokens_map.json added_tokens.json chat_template.jinja chat_template.json".split()
)

# `ModelProto{normalizer_spec{add_dummy_prefix: false}}` on the wire. Protocol buffers merge a
# message appended to another, so these bytes disable SentencePiece's leading space.
NO_LEADING_SPACE = b"\x1a\x02\x18\x00"


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
    control_ids: frozenset[int]  # special tokens, which represent no text
    _forbidden_ids: frozenset[int]  # never a result of encoding: control ids except unk
    _pieces: dict[int, str]  # the vocabulary's spelling of every id

    def encode(self, text: str, *, continuation: bool = False) -> list[int]:
        """Returns the ids of `text`, without BOS and EOS.

        LLaMA's tokenizers put a space before a text. With `continuation` the text continues an
        earlier one, as a response does its prompt, and that space is omitted:
        `decode(encode(prompt) + encode(response, continuation=True)) == prompt + response`.

        Raises:
          ValueError: `text` is not valid Unicode or would yield a control id.
        """
        text.encode()  # raises for half a surrogate pair, which neither library reports
        ids = self._encode(text, continuation)
        if leaked := self._forbidden_ids.intersection(ids):
            name = self.piece(min(leaked))
            raise ValueError(f"this tokenizer cannot encode {name!r} as plain text; remove it")
        return ids

    def decode(self, ids: Iterable[int], *, continuation: bool = False) -> str:
        """Returns the text of `ids`; control ids and ids beyond the vocabulary are skipped.

        The space that `encode` put before the text is removed, unless `continuation` is set.
        """
        known = [int(i) for i in ids if i < self.vocab_size and i not in self.control_ids]
        return self._decode(known, continuation)

    def piece(self, token_id: int) -> str:
        """Returns the vocabulary's spelling of one id, such as `▁the`, `<0x0A>` or `</s>`."""
        return self._pieces[token_id]

    @abstractmethod
    def _encode(self, text: str, continuation: bool) -> list[int]: ...

    @abstractmethod
    def _decode(self, ids: list[int], continuation: bool) -> str: ...

    def _set_special_ids(self, declared: Mapping[str, str], directory: epath.Path) -> None:
        """Sets the ids of the declared special tokens; `control_ids` holds the built-in ones."""
        ids = {piece: token_id for token_id, piece in self._pieces.items()}
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


class SentencePieceTokenizer(Tokenizer):
    """`tokenizer.model` of LLaMA 1 and 2; unknown characters become bytes."""

    def __init__(self, directory: epath.Path):
        from sentencepiece import SentencePieceProcessor

        path = directory / "tokenizer.model"
        try:
            model = SentencePieceProcessor(model_proto=path.read_bytes())
        except RuntimeError as error:
            raise ValueError(
                f"{path} is not a SentencePiece model; LLaMA 3's is tiktoken's: "
                "use tokenizer.json of its Hugging Face release instead"
            ) from error
        continuing = model.serialized_model_proto() + NO_LEADING_SPACE
        self._models = {False: model, True: SentencePieceProcessor(model_proto=continuing)}
        special, added, adds_bos = _read_settings(directory)
        pieces = [model.id_to_piece(i) for i in range(model.vocab_size())]
        # Hugging Face adds tokens outside the model file: Alpaca's "[PAD]" is id 32,000.
        self._pieces = dict(enumerate(pieces)) | {i: name for name, i in added.items()}
        self.vocab_size = max(self._pieces) + 1
        self.control_ids = frozenset(
            i for i in range(self.vocab_size) if i >= len(pieces) or model.is_control(i)
        )
        ids = {kind: getattr(model, f"{kind}_id")() for kind in ("bos", "eos", "unk", "pad")}
        own = {f"{kind}_token": pieces[i] for kind, i in ids.items() if i >= 0}
        self._set_special_ids(own | special, directory)
        self.adds_bos = self.bos_id is not None and adds_bos is not False

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
        spec = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
        special, _, adds_bos = _read_settings(directory)
        for token in spec["added_tokens"]:
            token["special"] |= token["content"] in special.values()
        sections = ("normalizer", "pre_tokenizer", "decoder")
        continuing = spec | {name: _without_leading_space(spec.get(name)) for name in sections}
        model = _build(spec)
        self._models = {False: model, True: model if continuing == spec else _build(continuing)}
        vocabulary = model.get_vocab(with_added_tokens=True)
        self._pieces = {token_id: piece for piece, token_id in vocabulary.items()}
        self.vocab_size = max(self._pieces) + 1
        added = model.get_added_tokens_decoder().items()
        self.control_ids = frozenset(i for i, token in added if token.special)
        self._set_special_ids(special, directory)
        if adds_bos is None:  # the file's post-processor decides
            adds_bos = model.encode("a").ids[:1] == [self.bos_id]
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

    Each file is optional, and the first to name a kind takes precedence. A token is a string or
    `{"content": string}`; early LLaMA conversions wrote "", which counts as unset.
    """

    def read(name: str) -> dict[str, Any]:
        path = directory / name
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    config, special, added = read("tokenizer_config.json"), {}, read("added_tokens.json")
    for source in (config, read("special_tokens_map.json")):
        for kind in SPECIAL_KINDS:
            token = source.get(kind)
            text = token["content"] if isinstance(token, dict) else token
            if text:
                special.setdefault(kind, text)
    for token_id, token in config.get("added_tokens_decoder", {}).items():
        added.setdefault(token["content"], int(token_id))
    return special, added, config.get("add_bos_token")


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
