"""Answers that decline to answer, recognized by their first words."""

import re

_OPENINGS = (
    r"(?:i['’]m|i am) (?:very |really |so )?(?:sorry|afraid),? (?:but |that )?"
    r"(?:i|as an|this|we|my)\b.{0,60}?"
    r"(?:can['’]?t|cannot|can not|unable|not able|won['’]t|don['’]t|not allowed|not comfortable)",
    r"(?:unfortunately|sorry|apologies|i apologi[sz]e),?.{0,40}?\bi(?:['’]m| am)? "
    r"(?:can['’]?t|cannot|can not|unable|not able|won['’]t)",
    r"i (?:can['’]?t|cannot|can not|won['’]t|will not) "
    r"(?:help|assist|answer|provide|fulfil|comply|do that|give|offer|diagnose|discuss|support)",
    r"i(?:['’]m| am) (?:unable|not able|not allowed|not comfortable) ",
    r"(?:i['’]m|i am) (?:really |so )?sorry (?:that )?you['’]re feeling.{0,40}?"
    r" i(?:['’]m| am) unable",
    r"i must (?:respectfully )?decline\b",
    r"[^\n]{0,160}?\bas an? (?:[\w-]+ )?(?:ai|artificial intelligence)\b[^\n]{0,60}?\bi "
    r"(?:can['’]?t|cannot|can not|am unable|am not able|don['’]t have|do not have)",
)
_REFUSAL = re.compile(rf"\W*+(?:{'|'.join(_OPENINGS)})", re.IGNORECASE)


def is_refusal(text: str) -> bool:
    """Whether an answer begins as English refusals do: a heuristic, not a judgement.

    >>> is_refusal("I'm sorry, but I can't help with that."), is_refusal("As an AI, I cannot say.")
    (True, True)
    >>> is_refusal("I'm sorry to hear that you can't sleep."), is_refusal("You cannot drive yet.")
    (False, False)
    >>> is_refusal("I'm really sorry that you're feeling this way, but I'm unable to help.")
    True
    """
    return bool(_REFUSAL.match(text))
