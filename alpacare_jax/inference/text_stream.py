"""An answer's text while its tokens arrive: what can be shown without being taken back."""

from collections.abc import Iterable, Sequence

from alpacare_jax.data.tokenizers import Tokenizer

INCOMPLETE = "\ufffd"
"""What decoders write for bytes that are no whole character."""


def cut_at_stop(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """The text before the earliest stop string, and whether there is one."""
    found = [at for at in (text.find(stop) for stop in stops) if at >= 0]
    return (text[: min(found)], True) if found else (text, False)


class TextStream:
    """The text of an answer, token by token; it equals the text of all tokens at once.

    Neither a part of a character nor a part of a stop string is ever shown. For the stop "pain":

        tokens = [" the", " p", "aper", " pa", "in"]
        shown  = [" the",  "", " paper",  " ",   ""]

    Args:
      stops: texts before which the answer ends; the one completed first counts.
      strip: whether whitespace at both ends is left out, as `generate` does.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = (), *, strip: bool = False):
        self._tokenizer, self._stops, self._strip = tokenizer, stops, strip
        self._longest = max(map(len, stops), default=0)
        self._open: list[int] = []  # tokens whose text may still change
        self._begun = False
        self.text = ""  # of all tokens before them, or of the whole answer once it has ended
        self.shown = 0  # characters of it that were returned, or left out by `strip`
        self.used = 0  # tokens, those that complete the stop string included
        self.stopped = False  # whether a stop string ended the answer

    def feed(self, ids: Iterable[int]) -> str:
        """The text that can be shown after these tokens, from where the last call ended."""
        for token_id in ids:
            if self.stopped:
                break
            self.used += 1
            self._add(token_id)
        return self._show(len(self.text) - (0 if self.stopped else self._held()))

    def close(self) -> str:
        """The rest of the text: no token follows."""
        if self._open:
            self.text += self._tokenizer.decode(self._open, continuation=True)
            self._open = []
        return self._show(len(self.text))

    def _add(self, token_id: int) -> None:
        tokenizer = self._tokenizer
        if token_id in tokenizer.control_ids or token_id >= tokenizer.vocab_size:
            return
        self._open.append(token_id)
        tail = tokenizer.decode(self._open, continuation=True)
        before = max(0, len(self.text) - self._longest)
        found, self.stopped = cut_at_stop(self.text[before:] + tail, self._stops)
        if self.stopped:
            self.text, self._open = self.text[:before] + found, []
        elif not (tail.endswith(INCOMPLETE) or tokenizer.is_byte(token_id)):
            self.text, self._open = self.text + tail, []

    def _held(self) -> int:
        """The length of the longest end of the text that may be the beginning of a stop string."""
        sizes = range(min(self._longest - 1, len(self.text) - self.shown), 0, -1)
        ends = (size for size in sizes if any(self._begins(stop, size) for stop in self._stops))
        return next(ends, 0)

    def _begins(self, stop: str, size: int) -> bool:
        return size < len(stop) and self.text.endswith(stop[:size])

    def _show(self, end: int) -> str:
        part = self.text[self.shown : end]
        if self._strip:
            if not self._begun:
                self.shown += len(part) - len(part.lstrip())
                part = part.lstrip()
            part = part.rstrip()
        self._begun = self._begun or bool(part)
        self.shown += len(part)
        return part


def spelling(tokenizer: Tokenizer, token_id: int) -> tuple[str, bytes]:
    """A token as text and as bytes; one that is no whole character has `bytes:` and hexadecimals,
    one that the tokenizer does not know its id.

    >>> # The three tokens of the ideograph 患 in LLaMA's vocabulary:
    >>> # ("bytes:\\\\xe6", b"\\xe6"), ("bytes:\\\\x82", b"\\x82"), ("bytes:\\\\xa3", b"\\xa3")
    """
    content = tokenizer.token_bytes(token_id)
    if not content:
        return f"token_id:{token_id}", content
    try:
        return content.decode(), content
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content), content
