"""Separates what a model thought from what it answered.

Servers without a reasoning parser leave thoughts in the text, between marks of many kinds. What is
between an opening and a closing mark is a thought, wherever it is; without a closing mark, all that
follows the opening one; without an opening mark (a chat template may contain it), all that precedes
the closing one. Of a reply in channels (gpt-oss), only the final channel is the answer.
"""

import re

# Of DeepSeek R1, Qwen, Seed, Magistral, Kimi, Cohere, MedGemma, Gemma and OpenThinker, and tags
# that models write by themselves. A tag may have been escaped as HTML.
_NAME = (
    r"(?:(?:ant|seed:)?think(?:ing)?|thoughts?|reasoning|reflection|scratchpad|inner_?monologue)"
)
_MARKS = re.compile(
    rf"(?P<empty><{_NAME}\s*/>)"
    rf"|(?P<open>(?:<|&lt;){_NAME}(?:\s[^<>\n]{{0,80}})?(?:>|&gt;)"
    r"|\[THINK\]|◁think▷|<\|(?:START_THINKING|begin_of_thought|thinking|think)\|>"
    r"|<unused94>(?:thought\n)?|<\|channel>thought\n?"
    r"|<details\s[^<>\n]{0,40}type=\"?reasoning[^<>\n]{0,80}>)"
    rf"|(?P<close>(?:<|&lt;)\s?/\s?{_NAME}\s?(?:>|&gt;)"
    r"|\[/THINK\]|◁/think▷|<\|(?:END_THINKING|end_of_thought|/thinking|/think)\|>"
    r"|<unused95>|<channel\|>)"
    r"|(?P<details></details>)",
    re.IGNORECASE,
)

_CHANNEL = re.compile(
    r"<\|channel\|>\s*(?P<name>\w+)[^<]{0,80}(?:<\|constrain\|>[^<]{0,40})?<\|message\|>"
    r"(?P<text>.*?)(?:<\|(?:end|return|call)\|>|(?=<\|(?:start|channel)\|>)|\Z)",
    re.DOTALL,
)
_ROLE = re.compile(r"<\|start\|>(?:assistant)?|<\|(?:end|message)\|>")
_BARE_CHANNELS = re.compile(r"\A\s*analysis(?P<thought>.*)assistantfinal(?P<text>.*)", re.DOTALL)
"""The same where the server removed the special tokens."""

_SPECIAL = (
    r"(?:<[|｜][^<>|｜\s]{1,40}[|｜]>|\[\|\w{1,20}\|\]|<(?:end|start)_of_turn>|<turn\|>"
    r"|<[eb]os>|\[EOS\])"
)
_END = r"(?:<[|｜](?:im_end|eot_id|end|end_?of_?text|end▁of▁sentence)[|｜]>|<end_of_turn>)"
MAX_TOKEN_LENGTH = 60
"""Characters of a special token, at most."""

_HEAD = re.compile(rf"\A\s*(?:{_SPECIAL}\s*)+(?:assistant\b\s*(?:{_SPECIAL})?|model\n)?")
_TAIL = re.compile(rf"{_SPECIAL}\Z")
_NEXT_TURN = re.compile(
    rf"{_END}\s*(?:<[|｜](?:im_start|start|start_header_id|user)[|｜]>|<start_of_turn>).*\Z",
    re.DOTALL | re.IGNORECASE,
)
_WRAPPED = re.compile(r"\A\s*<answer>(?P<text>.*?)(?:</answer>\s*)?\Z", re.DOTALL)


def split(reply: str) -> tuple[str, str]:
    """(answer, thoughts) of a reply; special tokens around the answer are in neither.

    >>> split("<think>Viral?</think>Gout.")
    ('Gout.', 'Viral?')
    >>> split("Viral?</think>Gout.<|im_end|>"), split("<think>Viral?")
    (('Gout.', 'Viral?'), ('', 'Viral?'))
    >>> split("<|channel|>analysis<|message|>Viral?<|end|><|channel|>final<|message|>Gout.")
    ('Gout.', 'Viral?')
    >>> split("pH < 7 </s> "), split(" Give <s>5</s> 6 mg. ")
    (('pH < 7', ''), (' Give <s>5</s> 6 mg. ', ''))
    """
    answer, thoughts = _without_channels(reply)
    answer, more = _without_tags(answer)
    thoughts += more
    answer = _without_tokens(answer)
    if thoughts and (wrapped := _WRAPPED.match(answer)):
        answer = wrapped["text"]
    return answer if answer == reply else answer.strip(), "\n".join(
        filter(None, map(str.strip, thoughts))
    )


def _without_channels(reply: str) -> tuple[str, list[str]]:
    found = list(_CHANNEL.finditer(reply))
    if not found:
        if bare := _BARE_CHANNELS.match(reply):
            return bare["text"], [bare["thought"]]
        return reply, []
    thoughts = [_ROLE.sub("", reply[: found[0].start()])]
    answer = []
    for part in found:
        (answer if part["name"].lower() == "final" else thoughts).append(part["text"])
    rest = reply[found[-1].end() :]
    is_answer = found[-1]["name"].lower() == "final" or rest.lstrip().startswith("<|start|>")
    (answer if is_answer else thoughts).append(_ROLE.sub("", rest))
    return "".join(answer), thoughts


def _without_tags(reply: str) -> tuple[str, list[str]]:
    """A mark of any kind may close what another kind opened: models mix them up."""
    answer: list[str] = []
    thoughts: list[str] = []
    start = 0  # of what is not assigned yet
    is_open = is_details = False
    for mark in _MARKS.finditer(reply):
        before = reply[start : mark.start()]
        if mark["empty"]:
            (thoughts if is_open else answer).append(before)
        elif mark["open"]:
            if is_open:
                continue
            answer.append(before)
            is_open, is_details = True, mark["open"].lower().startswith("<details")
        elif mark["details"] and not (is_open and is_details):
            continue
        else:
            if not is_open:
                thoughts += answer
                answer = []
            thoughts.append(before)
            is_open = False
        start = mark.end()
    (thoughts if is_open else answer).append(reply[start:])
    return "".join(answer), thoughts


def _without_tokens(text: str) -> str:
    text = _HEAD.sub("", _NEXT_TURN.sub("", text))
    ended = text.rstrip()
    while special := _TAIL.search(ended, max(0, len(ended) - MAX_TOKEN_LENGTH)):
        ended = text = ended[: special.start()].rstrip()
    # <s> and </s> are also tags of HTML.
    if ended.endswith("</s>") and ended.count("</s>") > ended.count("<s>"):
        text = ended.removesuffix("</s>")
    elif ended.startswith("<s>") and ended.find("</s>") in (-1, len(ended) - 4):
        text = ended.removeprefix("<s>").removesuffix("</s>")
    return text
