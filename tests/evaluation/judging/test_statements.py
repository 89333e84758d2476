"""Verdicts stated as final, in thousands of wordings, and what only looks like one."""

import itertools
import json
import re

import pytest

from common.text import thoughts
from evaluation.judging.judges import JUDGE_PROMPTS
from evaluation.judging.parsers import brackets, output_label, structured
from tests.conftest import REPOSITORY

HOSTILE_REPLIES = REPOSITORY / "tests/golden/hostile_replies.jsonl"

VERDICTS = {
    output_label: {"first": "Output (a)", "second": "Output (b)", "tie": "Tie"},
    brackets: {"first": "[[A]]", "second": "[[B]]", "tie": "[[C]]"},
}
LEADS = (
    "",
    "Based on this evaluation, ",
    "Based on accuracy, ",
    "Considering both answers, ",
    "After weighing the criteria, ",
    "Although both are long, ",
    "In conclusion, ",
    "Overall, ",
    "Therefore, ",
    "Both name the dose, but ",
    "The first gives the dose. The other does not warn of the risk.\n\n",
    "- Accuracy: the dose is right\n- Safety: no risk is named\n\n",
)
CORES = (
    "{}",
    "my verdict is {}",
    "the final verdict is: {}",
    "the better choice is {}",
    "I choose {}",
    "I conclude that the answer is {}",
    "Verdict: {}",
    "final answer: {}",
)
REASONS = (
    "",
    ".",
    "!",
    " because it names the dose.",
    ", since this is what the text says.",
    "\n\nIt names the dose and does not alarm the reader.",
    "\n\nReason: both name the dose, and neither mentions the fever.",
)
DECORATIONS = ("{}", "**{}**", "`{}`", '"{}"', "__{}__", "\u200b{}", "<answer>{}</answer>")


@pytest.mark.parametrize("parse", VERDICTS, ids=lambda parse: parse.__name__)
def test_a_tie_is_as_readable_as_a_win(parse):
    for words in itertools.product(LEADS, CORES, REASONS, DECORATIONS):
        lead, core, reason, decoration = words
        for verdict, name in VERDICTS[parse].items():
            reply = lead + core.format(decoration.format(name)) + reason
            assert parse(reply) == verdict, reply


LABELS = (
    "Output (a)",
    "Output (a) is better.",
    "Therefore, Output (a) is better.",
    "Based on accuracy, Output (a) is better.",
    "Answer (a) names the risk. Therefore, Output (a) is better.",
    "Output (a) is better because it names the dose.",
    "Output (a) is better. It names the dose and the risk.",
    "Output (a) is better. Output (b) omits the dose.",
    "Output (a) gives a full account. Output (b) omits the dose. Therefore, Output (a) is better.",
    "My final verdict is: Output (a)",
    "I choose Output (a).",
    "I prefer Output (a) because it is clear.",
    "Verdict: Output (a)",
    "**Verdict:** Output (a)",
    "### Verdict\nOutput (a)",
    "After careful comparison, I choose Output (a).",
    "In conclusion, Output (a) is the better choice.",
    "Overall, Output (a) is better.",
    "Both are good, but Output (a) is better.",
    "Although Output (b) is shorter, Output (a) is better.",
    "Output (a) is slightly better.",
    "The better output is Output (a).",
    "Output (a)\n\nThe verdict is Output (a) because it is full and correct; output (b) is a joke.",
    "Output (a)!",
    "<answer>Output (a)</answer>",
    "Output (a) is the better output, as it is more complete.",
    "Output (b) is vague.\n\nOutput (a)",
    "Here is my verdict: Output (a).",
    "Output (a) is better because it names the dose, whereas output (b) omits it.",
    "The answer is Output (a).",
    "Answer: Output (a)",
    "Final Answer: **Output (a)**",
    "```\nOutput (a)\n```",
    "I would check accuracy. Output (a) is accurate. Output (b) is not. So Output (a) is better.",
    "Output (a)\n\nReason: It names the dose.",
    "Output (a)\n\nExplanation: Output (b) leaves out the dose.",
    "**Output (a)** is better.",
    "Output **(a)**",
    "Considering accuracy and safety, Output (a) is the better choice.",
    "Given the criteria above, my choice is Output (a).",
    "Output (a) wins.",
    "The winner is Output (a).",
    "Output (a):\nIt is accurate.\n\nOutput (b):\nIt is vague.\n\nVerdict: Output (a)",
    "- Output (a)",
    "Output (a) — it names the dose.",
    "Output (a), since it names the dose.",
    "Since it names the dose, Output (a) is better.",
    "Tie is not warranted here. Output (a) is better.",
)

LABELS += (
    "Output (a)\n\nOutput (a) is more accurate, while output (b) is a joke.",
    "Output (a)\n\nOutput (a) is more complete than output (b).",
    "Output (a) is better. Output (b) is wrong and does not name the dose.",
)

BRACKETS = (
    "[[A]]",
    "Based on this evaluation, the final verdict is: [[A]]",
    "Final verdict: [[A]]",
    "My final verdict is [[A]].",
    "Therefore, my final verdict is: [[A]]",
    "Assistant B omits the dose. Assistant A names it.\n\n[[A]]",
    "Accuracy: A is better\nCompleteness: equal\nSafety: B is better\nHelpfulness: A\n\n[[A]]",
    "- Accuracy: A names the dose\n- Safety: A warns\n[[A]]",
    "1. Accuracy: both.\n2. Safety: A does not harm\n\n**[[A]]**",
    "[[A]]\n\nAssistant A's answer names the dose.",
    "[[A]] Assistant A names the dose.",
    "Final Verdict: [[A]] (assistant A)",
    "After weighing all four criteria, my verdict is:\n\n[[A]]",
    "［［Ａ］］",
    "Assistant A is better: [[A]]",
    "So the better answer is that of assistant A: [[A]]",
    "助手A的回答更完整。\n\n[[A]]",
    "Both answers are not perfect, but A is clearer. [[A]]",
    "The verdict is [[A]] because assistant B omits the dose.",
    '"[[A]]"',
    "Overall, assistant A does better. Final verdict: [[A]]",
)

TIES = (
    "Tie",
    "A tie.",
    "It's a tie.",
    "Therefore, it is a Tie.",
    "Based on accuracy, it is a tie.",
    "Both outputs are equally good: Tie",
    "Neither is better. Tie.",
    "Output (a) and Output (b) are equally good. Tie",
    "It is a tie because both name the dose.",
    "It's a tie because neither is better than the other.",
    "The verdict is: Tie",
    "Tie\n\nBoth outputs name the dose.",
    "I choose Tie.",
    "My verdict is a tie.",
    "Tie. Output (a) and Output (b) are both accurate.",
    "Both outputs name the dose. Therefore, Tie is the verdict.",
    "Overall, Tie.",
    "Verdict: **Tie**",
    "Output (a) and Output (b) are equally good, so it's a tie.",
    "Answer: Tie",
    "Tie: both name the risk.",
)

BRACKETED_TIES = (
    "Final verdict: [[C]] for a tie.",
    "[[C]]",
    "Both are equal. [[C]]",
    "The verdict is a tie: [[C]]",
    "[[C]] (tie)",
    "[[C]]\n\nBoth answers name the dose.",
    "[[C]] because neither is better.",
)


BRACKETS += (
    "Overall, Assistant A gives the more helpful answer.\n\n[[A]]",
    "I judge A to be better.\n\nFinal verdict: [[A]]",
    "Accuracy: tie. Completeness: A. Safety: A. Helpfulness: B.\n\n[[A]]",
    "Accuracy: A 8, B 7\nCompleteness: A 6, B 9\n\n[[A]]",
    "Scores: Assistant A: 9/10, Assistant B: 7/10.\n\n[[A]]",
    "It was hard to choose between the two. Assistant A names the dose. [[A]]",
    "Assistant B could be better. [[A]]",
    "Assistant B is better in style, but assistant A is better in substance. [[A]]",
    "Assistant A is better than assistant B.\n\n[[A]]",
    "B is worse than A.\n\n[[A]]",
    "B is dangerous.\n\n[[A]]",
    "B is not as good as A.\n\n[[A]]",
    "Answer A names the dose.\n\n[[A]]",
    "Die Antwort A ist besser als B.\n\n[[A]]",
    "[[A]]\n\nAssistant B is vague and misses the dose.",
    "[[A]]\n\nAssistant B is outperformed by assistant A.",
    "[[A]]\n\nBoth answers lack a dose. Assistant A warns of the risk.",
)

BRACKETED_TIES += (
    "Both assistants omit the dose and both are vague. [[C]]",
    "Scores: A 8, B 8\n[[C]]",
    "There is no clear winner. [[C]]",
    "Neither is better. [[C]]",
    "I can see no difference. [[C]]",
    "[[C]]\n\nBoth are accurate. Assistant A is short, and assistant B is long.",
)


def swapped(reply: str) -> str:
    """The same words for the other side."""
    letters = re.compile(
        r"\b[AB]\b(?! tie)|[ＡＢ]|(?<=\()[ab](?=\))|\b[ab](?=\.)|\b(?:first|second|former|latter)\b"
    )
    other = {"A": "B", "a": "b", "Ａ": "Ｂ", "first": "second", "former": "latter"}
    other |= {value: key for key, value in other.items()}
    return letters.sub(lambda found: other[found[0]], reply)


@pytest.mark.parametrize("reply", LABELS)
def test_labels_as_judges_write_them(reply):
    assert (output_label(reply), output_label(swapped(reply))) == ("first", "second")


@pytest.mark.parametrize("reply", BRACKETS)
def test_brackets_as_judges_write_them(reply):
    assert (brackets(reply), brackets(swapped(reply))) == ("first", "second")


@pytest.mark.parametrize(
    "around",
    [
        "{}<|im_end|>",
        "<think>B? </think>{}",
        "hm B\n</think>\n{}",
        "[THINK]B[/THINK]{}",
        "\ufeff{}",
    ],
)
@pytest.mark.parametrize("parse", VERDICTS, ids=lambda parse: parse.__name__)
def test_thoughts_and_tokens_around_a_verdict(parse, around):
    for verdict, name in VERDICTS[parse].items():
        assert parse(thoughts.split(around.format(name))[0]) == verdict


def test_the_worked_example_of_our_prompts_is_a_verdict():
    for name in ("alpacare", "alpacare_no_tie"):
        prompt = (JUDGE_PROMPTS / f"{name}.txt").read_text()
        example = re.search(r"is it a Tie\?\n(.*?joke\.)", prompt, re.DOTALL)
        assert output_label(example[1]) == "first"


@pytest.mark.parametrize("reply", TIES)
def test_ties_as_judges_write_them(reply):
    assert output_label(reply) == output_label(swapped(reply)) == "tie"


@pytest.mark.parametrize("reply", BRACKETED_TIES)
def test_ties_in_brackets(reply):
    assert brackets(reply) == "tie"


HOSTILE = (
    "Output (a)\n\nOutput (a) is less complete than output (b).",
    "Output (a)\n\nOutput (a) is long, but output (b) is more accurate.",
    "Output (a)\n\nOutput (a) is prettier and output (b) is right.",
    "Output (a)\n\nOutput (b) is more complete than output (a).",
    "[[A]]\n\nAssistant A is worse than assistant B.",
    "[[A]]\n\nAssistant B, unlike assistant A, is better.",
    "[[A]]\n\nAssistant B, not A, wins.",
    "This is the wrong verdict.\n[[A]]",
    "My verdict is not what you see here.\n[[A]]",
    "What follows is false.\n[[A]]",
    "Below is the verdict I reject.\n[[A]]",
    "- Rejected\n- [[A]]",
    "- Loser\n- Output (a)",
    "Is Output (a) better",
    "Is it that Output (a) is better",
    "Given Output (a)",
    "With Output (a)",
    "Output (a) is better for the layman.",
    "Output (a) is better for both readers.",
    "Output (a), the runner-up.",
    "Output (a), the underdog",
    "[[A]], the one to avoid.",
    "Output (a). It should have been (b).",
    "Output (a). It goes to (b).",
    "Output (a). This contradicts my analysis.",
    "[[A]]\nThis favours B.",
    "[[B]]\nOutput (a)",
    "[[B]].\nOutput (a)",
    "Verdict: Output (b). Verdict: [[A]]",
    "Output (a) is better.\n\nNote: I was asked to say this.",
    "Output (a) is better. It was the verdict until I saw the other.",
    "Output (a) is better. Or not.",
    "Output (a) is better. Both are worse.",
    "Output (a) is better.\nThe other is.",
    "The verdict that wins is the other\n[[A]]",
    "Mein Urteil: nicht [[A]]",
    "Mon verdict : surtout pas [[A]]",
    "Output (a) is better. Non.",
    "Output (a) is better. これは嘘です。",
    "[[A]]です か",
    "I would never pick the other. [[A]] is a lie.",
    "Output (a) is worse.",
    "Output (b) is better than Output (a).",
    "Wait, no: Output (a)? Output (b)?",
    "[[A]] … wait, no: [[B]]",
    "Output (a) ... wait, no: Output (b)",
    "Output (a)\n\nWait, no: the other one.",
    "Output (a)\n\nOn second thought, the second is better.",
    "Output (a). Just kidding.",
    "Output (a) would have been my choice if it named the dose.",
    "Some say Output (a) is better.",
    '"Output (a) is better" is what a careless judge says.',
    "A careless judge would write:\nOutput (a)",
    "A careless judge would write:\n\n[[A]]",
    "I refuse to answer\n[[A]]",
    "It would be a mistake to answer\n\n[[A]]",
    "Verdict: not\n[[A]]",
    "Verdict: by no means\n[[A]]",
    "If safety mattered, Output (a) would be better.",
    "If safety matters, Output (a) is better.",
    "Hypothetically, [[A]]",
    "Oh sure, Output (a) is better.",
    "Yeah right: [[A]]",
    "Anything but Output (a).",
    "Rather than Output (a), the other.",
    "Instead of [[A]], the other.",
    "Neither Output (a).",
    "Neither [[A]] nor the other.",
    "Is it [[A]]?",
    "[[A]]? No.",
    "[[A]] No.",
    "[[A]]. No.",
    "[[A]] is wrong.",
    "[[А]]",
    "[[В]]",
    "[[С]]",
    "Output (а)",
    "ª",
    "Output (ª)",
    "[[𝐀]]",
    "[[Ⓑ]]",
    "Output ⒜",
    "[[A]]\n[[В]]",
    'Reply with exactly one of "Output (a)", "Output (b)" and "Tie".',
    "[[A]] if answer A is better, [[B]] if answer B is, [[C]] if they are equally good.",
    "[[A]] if the answer of assistant A is better",
    "[[A]]\nif the answer of assistant A is better.",
    '{"verdict": "A", "final": "B"}',
    '{"verdict": "A"} {"verdict": "B"}',
    '{"verdict": ["A", "B"]}',
    '{"verdict": "А"}',
    'Not {"verdict": "A"}',
    '{"verdict": "A"} is wrong.',
    '{"verdict": "A"}\nNo, B.',
    '```json\n{"verdict": "A"}\n```\n```json\n{"verdict": "B"}\n```',
    "Output (a) is second best.",
    "Output (a) is no better.",
    "Output (a) is hardly better.",
    "Output (a) is far from better.",
    "Output (a) is better described as nonsense.",
    "Output (a) is better avoided.",
    "Output (a) ist nicht besser.",
    "Pas Output (a).",
    "Output (a) n'est pas meilleure.",
    "No es Output (a).",
    "不是 Output (a)",
    "不是\n[[A]]",
    "Auf keinen Fall\n[[A]]",
    "Output (a)\n\nNein, doch nicht.",
    "Output (a)\nOr rather the other.",
    "~~[[A]]~~",
    "~~[[A]]~~ B",
    "❌ [[A]]",
    "[[A]] ❌",
    "!Output (a)",
    "Output (a) :)",
    "Output (a) /s",
    "The verdict is [[A]]. The opposite is true.",
    "The verdict is [[A]]. It is the other way round.",
    "The verdict is [[A]]. This is a joke.",
    "The verdict is [[A]]. It isn't.",
    "The verdict is [[A]]. It is not.",
    "The verdict is [[A]]. The second answer is better.",
    "The verdict is [[A]]. Assistant B is better.",
    "Assistant B is better.\n\n[[A]]",
    "Output (a). The latter.",
    "Output (a). It's b.",
    "Output (a) is better. Output (b) is best.",
    "It is false that Output (a) is better.",
    "It is false that\nOutput (a) is better.",
    'The user wrote: "The weather is fine. Output (a) is better. Thanks."',
    "The user wrote: «The weather is fine. [[A]] Thanks.»",
    'He wrote "Really? Output (a) is better."',
    "Not, e.g. Output (a).",
    "I prefer anything, i.e. [[A]] or not.",
    "1. Output (a)\n2. Output (b)",
    "Output (a) > Output (b)",
    "Output (a) < Output (b)",
    "Output (a): 2/10",
    "Output (a)\n2/10",
    "Imagine a fool. Output (a).",
    "The format is as follows.\n```\n[[A]]\n```",
    "I cannot say [[A]].",
    "I doubt that [[A]].",
    "Perhaps [[A]].",
    "Probably Output (a).",
    "Maybe Output (a)",
    "I think Output (a)",
    "Output (a), I guess.",
    "Output (a), perhaps.",
    "Output (a) may be better.",
    "Output (a) seems better.",
    "Output (a) might be the better choice.",
    "[[A]], though I'm not sure.",
    "[[A]] except that B is better.",
    "[[A]] unless safety matters.",
    "[[A]] is tempting. The other wins.",
    "Output (a) is better at first sight.",
    "At first sight, Output (a) is better.",
    "In an ideal world, Output (a) is better.",
    "According to the ad, Output (a) is better.",
    "Output (a) is better in tone.",
    "Output (a) is better only in tone.",
    "Output (a) is better than a tie? No.",
    "Output (a) was better.",
    "Output (a) should be better.",
    "The better one is not [[A]]",
    "The loser is [[A]]",
    "Worst: [[A]]",
    "Rejected: Output (a)",
    "[[A]] loses to the other.",
    "[[A]] loses.",
    "Choose [[A]] at your peril.",
    "Don't choose Output (a).",
    "Never choose [[A]]",
    "[[A]]\n\nCorrection: the other.",
    "[[A]]\nEDIT: B",
    "[[A]]\nB",
    "[[A]] -> B",
    "[[A]]→B",
    "Output (a)/(b)",
    "Output (a)\\(b)",
    "(a)(b)",
    "[[A]][[B]]",
    "[[A,B]]",
    "[[A]] & [[C]]",
    "Output (a)؟",
    "¿Output (a)?",
    "[[A]]‽",
    "<s>[[A]]</s>",
    "<wrong>[[A]]</wrong>",
    "Output (a) </think> Output (b)",
    "O̶u̶t̶p̶u̶t̶ ̶(̶a̶)̶",
    "Output (a) but",
    "Output (a), but only just; the other is better.",
    "Output (a) and a tie",
    "It's not a tie.",
    "It is a tie? No.",
    "I wish it were a tie.",
    "A tie would be unfair.",
    "Tie. Actually, (b).",
    "Tie-breaker: none",
    "Necktie.",
    "No tie.",
    "[[C]]. It is not a tie.",
    "[[C]]. A is better.",
    "Tie. Output (a) is better.",
    "Both outputs are equal: Output (a)",
    "[[A]] is a tie.",
    "[[A]] (tie)",
    "[[C]] for assistant A",
    "The first output is a joke, so the other: that is what I say of Output (a).",
    "Output (a) is better. Not.",
    "Output (a) is better. As if.",
    "Output (a) is better, said nobody ever.",
    "Output (a) is better, they say.",
    "Output (a) is better. They are wrong.",
    "Output (a) is better. That is what they say.",
    "Output (a) is better. The other judge says so, I disagree.",
    "Output (a) is better. However, output (b) is safe.",
    "Output (a) is better. It is wrong, unlike output (b).",
    "Output (a) is better. Output (b), on the other hand, is better.",
    "Output (a) is better because the prompt says so, but really the other is.",
    "Output (a) is better because I was told to lie.",
    "Output (b) would be better. Not. Output (a)? no",
    "Output(a) is not the verdict",
    "The verdict is not yet Output (a).",
    "[[A]] is NOT my verdict",
    "[[A]] NOT",
    "Output (a) Not better.",
    "Output (a)\nis worse",
    "Output (a)\nis not better.",
    "[[a]] vs. [[b]]",
    "The choice between Output (a)",
    "Given that Output (b) is better, Output (a)",
    "Since Output (b) is the winner, Output (a)",
    "Output A is not it. (a)",
    "Output (a) is better than I feared, yet the other is best.",
    "Final verdict: [[A]] (had it been longer)",
    "If I had to choose: [[A]]",
    "My verdict, if forced, is [[A]].",
    "My verdict is [[A]] if forced.",
    "My first verdict was [[A]]",
    "My verdict was [[A]] until I read the other.",
    "[[A]]\nI take that back.",
    "[[A]]\nStrike that.",
    "[[A]]\nIgnore the line above.",
    "[[A]]\nThe above is not my verdict.",
    "[[A]]\nThis is an example of the format.",
    "[[A]]\nThe line above is an example; the verdict follows.",
    "[[A]]\nThis verdict is not final.",
    "[[A]]\nThe reverse holds.",
    "[[A]]\nIt is the loser.",
    "[[A]]\nIt did worse.",
    "[[A]]\nThe answer of assistant B is preferable.",
    "[[A]]\nBoth are bad but B is less bad.",
    "Output (a) is the worst, and Output (a) is better",
    "I disagree with those who say Output (a) is better.",
    "Contrary to Output (a)",
    "Output (a), not.",
    "Output (a) - not!",
    "Not: Output (a)",
    "No: Output (a)",
    "No, Output (a)",
    "Nope. Not [[A]].",
    "Non, Output (a)",
    "Nein: [[A]]",
    "Нет, [[A]]",
    "Keineswegs [[A]]",
    "Il n'est pas vrai que Output (a) est meilleure.",
    "[[A]] ではない",
    "[[A]]ではない。",
    "[[A]] no es la mejor.",
    "[[A]] 不对",
    "[[A]]。不对。",
    "[[A]]. Não.",
    "लेकिन [[A]] नहीं",
    "[[A]] 아니다",
    "[[A]] yanlış",
    "Output (a) değil",
    "Output (a) is not, I repeat not, better.",
    "Output (a) is better, or is it.",
    "Output (a) is better or worse.",
    "Output (a) isn’t better",
    "Output (a) ain't better",
    "As a joke: Output (a)",
    "For fun, Output (a)",
    "Opposite day: Output (a)",
    "The user would prefer [[A]]",
    "The user prefers [[A]]",
    "GPT-4 chose [[A]]",
    "The previous judge: [[A]]",
    "Your example says: Output (a)",
    '"Output (a)" is the example\'s verdict.',
    "> [[A]]\nI disagree.",
    "A: [[A]] B: [[B]]",
    "[[A]]: 3, B: 7",
    "[[A]]\nScore: 2",
    "Output (a) 3/10, the other 7/10",
    "Output (a): 3\nOutput (b): 7",
    "Output (a) has errors. Output (b) has errors too. Neither.",
    "I cannot choose. Both are bad.",
    "Output (a) is better than nothing.",
    "Output (a) is a better joke.",
    "Output (a) is less preferable.",
    "Output (a) is preferable only if safety is ignored.",
    "Output (a) is the verdict given by a fool.",
    "What would make [[A]] the better answer",
    "To choose [[A]] is to err.",
    "Choosing [[A]] is wrong.",
    "Either Output (a) or a tie.",
    "Output (a) (or a tie).",
    "Output (a)? Tie? Tie.",
    "Somewhere between Output (a) and a tie",
    "[[A]] [[A]] [[B]]",
    "[[A]",
    "[A]]",
    "[[ ]] [[A]]",
    "[[A]]]",
    "[[[A]]]",
    "[[A!]]",
    "[[-A]]",
    "[[not A]]",
    "[[A]] = wrong",
    "[[A]] != verdict",
    "Verdict != [[A]]",
    "¬[[A]]",
    "Verdict: ~[[A]]",
    "I am torn: [[A]]",
    "A coin flip says [[A]]",
    "It is a coin flip.\n[[A]]",
    "Let us pretend.\n[[A]]",
    "Output (a) is better.\n\nP.S. The other.",
    "Output (a) is better.\n\nOr so they say.",
    "Output (a) is better.\n\nBut the doctor wants the other.",
    "Output (a) is better.\n\nBoth outputs? No: the second.",
    "Output (a) is better.\n\nSecond thoughts: B.",
    "Output (a) is better.\n\nThe doctor should take the second.",
    '{"explanation": "x", "verdict": "A", "correction": "B"}',
    '{"verdict": "A", "is_final": false}',
    '{"verdict": {"final": "B", "first": "A"}}',
    '[{"verdict": "A"}]',
    '{"verdict": "not A"}',
    '{"verdict": "A/B"}',
    '{"verdict": "Ａ or Ｂ"}',
    'Instead of {"verdict": "A"} I choose B.',
    'The format is {"verdict": "A"}',
    '{"verdict": "A"}?',
    '{"verdict": "A"} or {"verdict": "tie"}',
    '{"verdict": "A", "explanation": {"verdict": "B"}}',
)


@pytest.mark.parametrize("reply", HOSTILE)
def test_no_side_is_read_where_none_is_stated(reply):
    for parse in (output_label, brackets, structured):
        assert parse(reply) == parse(swapped(reply)) == "invalid", parse.__name__


def test_nor_in_hundreds_of_contradictions():
    """In prose, scores, tables, LaTeX, tags, JSON and other languages; hedges, aside remarks."""
    replies = [json.loads(line) for line in HOSTILE_REPLIES.read_text("utf-8").splitlines()]
    assert len(replies) > 700
    for reply in replies:
        for parse in (output_label, brackets, structured):
            assert parse(reply) == parse(swapped(reply)) == "invalid", (parse.__name__, reply)


WORDS_THAT_TURN = ("not", "n't", "never", "no", "neither", "hardly", "worse", "unless", "would")
WORDS_THAT_TURN += ("nicht", "pas", "не", "不", "لا", "नहीं", "não", "ない", "niet", "değil")


@pytest.mark.parametrize("word", WORDS_THAT_TURN)
@pytest.mark.parametrize("parse", VERDICTS, ids=lambda parse: parse.__name__)
def test_a_word_too_much_in_the_statement(parse, word):
    for verdict in VERDICTS[parse].values():
        words = f"My final verdict is {verdict}".split()
        for place in range(len(words) + 1):
            assert parse(" ".join([*words[:place], word, *words[place:]])) == "invalid"


@pytest.mark.parametrize(
    "piece", ["<b>", "[[A]] x\n", "Output (a) x\n", '"', "not ", "\n", "- x:", "(", "!"]
)
def test_endless_replies_are_read_at_once(piece):
    for parse in (output_label, brackets, structured):
        assert parse(piece * 20_000) == "invalid"
