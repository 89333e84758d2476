"""How wide texts are at most, and texts in lines that fit."""

import re
import unicodedata

_WIDE = dict.fromkeys("mwMW@%&…—", 1.05) | dict.fromkeys("+<=>~^#", 0.85)


def text_width(text: str, size: float, *, bold: bool = False) -> float:
    """The most that a text is wide in the usual fonts, in CSS pixels; which one is used is unknown.

    Widths of letters are those of the widest of DejaVu Sans, its serif and its monospaced kin,
    which are wider than Arial, Helvetica and Times.
    """
    ems = 0.0
    for letter in text:
        if unicodedata.combining(letter):
            continue
        known = _WIDE.get(letter)
        if known is None and letter.isascii():
            known = 0.88 if letter.isupper() else 0.65
        ems += known or 1.0
    return ems * size * (1.1 if bold else 1.0)


def wrapped(text: str, width: float, size: float, *, bold: bool = False) -> list[str]:
    """The whole text in lines of at most `width`, broken between words; within one that is wider.

    >>> wrapped("AlpaCare-with-a-name (LLaMA-2 13B)", 120, 11)
    ['AlpaCare-with-', 'a-name', '(LLaMA-2 13B)']
    """

    def fits(line: str) -> bool:
        return text_width(line, size, bold=bold) <= width

    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".lstrip()
        if fits(joined):
            lines[-1] = joined
            continue
        lines += [""] * bool(lines[-1])
        for part in re.findall(r"[^-_/]*[-_/]*", word):
            for piece in [part] if fits(part) else part:
                lines += [""] * (not fits(lines[-1] + piece))
                lines[-1] += piece
    return lines


def shortened(text: str, width: float, size: float) -> str:
    """The text on one line; shortened with "…" where it is wider than `width`."""
    text = " ".join(text.split())
    if text_width(text, size) <= width:
        return text
    while text and text_width(text + "…", size) > width:
        text = text[:-1]
    return text + "…"
