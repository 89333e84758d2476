"""The words by which `statements` recognizes a verdict, its reasons, and what takes it back."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


VERDICT_WORDS = _words(
    """a answer answers assistant best better choice choose chosen clearly conclude conclusion
    decision declare final finally for given go goes hence here here's i i'll in instruction is it
    it's json judgement judgment matches model much my of one option output outputs overall pick
    preferable prefer preferred response responses result select slightly so stronger superior that
    the therefore this thus to two verdict vote winner wins with"""
)
"""No sentence made of these words can speak against the side that it names."""

TIE_WORDS = _words(
    """are between both call comparable draw equal equally evenly good identical matched quality
    same tie tied well"""
)
"""The same for a tie."""

EQUALITY = _words("comparable draw equal equally evenly identical same tie tied")

PRAISE = _words(
    """beats best better choice choose chose chosen clearer correct deserves excels favor favorite
    favors favour favourite favours fuller go ideal more most nails outperforms pick prefer
    preferable preferred prefers right safer should stronger strongest superior surpasses true trust
    verdict win winner wins won"""
)
"""Turns a verdict round where the other side gets it, or where it is denied."""

BLAME = _words(
    """bad beaten behind dangerous error errors fails false flawed hallucinates harmful inaccurate
    incomplete incorrect inferior joke lacks less lose loser loses lost misleading misleads
    misses mistake mistaken nonsense omits outclassed outperformed poor runner surpassed trails
    unclear unsafe untrue useless vague weaker worse worst wrong"""
)
"""Turns a verdict round unless the other side gets it."""

NEGATIONS = _words("barely cannot hardly neither never no none nor not nothing scarcely")

CONDITIONS = _words(
    """assuming could if may might only otherwise provided should suppose unless until were when
    whenever would"""
)

FUNCTION_WORDS = _words(
    """a advantage ahead all am around as be beats been being boxed cake came case certainly come
    comes definitely deserves did do does down each edge edges every far favor favour gives gold
    hands i'd i'm it it's its just label lean leaning obviously offers on one ones only or out
    outperforms place point preference prize produces provides rank ranked ranking respect
    respects round runner say slight so sure surely take takes team text textbf that the there
    these they this those to top toward towards true undoubtedly up vote was way we were win"""
)
"""Sentences of these, verdict words and names of sides have no substance but who wins."""

RETRACTIONS = _words(
    """actually arguably changed contradict contradicts contrary correction debatable disagree
    disregard doubt doubtful earlier format formerly guess hypothetical hypothetically imagine
    inconsistent initially instead ironic ironically irony joking kidding lie maybe meant mind
    nevertheless nonetheless oops opposite originally overruled perhaps possibly pretend
    previously probably provisional really reconsider retract reverse reversed revised sarcasm
    sarcastic sarcastically scratch sorry strike subjective supposed swap swapped switch
    switched tentative trap truth uncertain undecided unsure wait withdraw"""
)
"""No reason needs them."""

ASIDES = (
    r"\b(?:above|follows|line)\b|\bmay (?:still )?change\b|\bwhat i think\b|\bthey want\b"
    r"|\bi (?:had to|have been|must|was)\b|\b(?:either way|be either|too close|matter of taste)\b"
    r"|\b(?:it|that|this)(?: all)? depends\b"
    r"|\b(?:answer|it|that|this|verdict) (?:is|was) (?:chosen |just |only |picked )?"
    r"(?:(?:at|by) |an? |the )?(?:coin|dice|example|guess|placeholder|random|test)\b"
)
"""Nor does a sentence after a verdict need these: a regular expression."""

PRETENCES = _words(
    """below coin demands fake following follows format guess hypothetical hypothetically imagine
    insists ironic ironically irony joke joking kidding lie line lying next opposite parody
    placeholder pretend quotation quote random refuse refused reject rejected reversed sarcasm
    sarcastic sarcastically suppose template unsure wants"""
)
"""In the sentence before a verdict they make it somebody else's."""

REASON_OPENERS = _words(
    """accuracy additionally also answer answers assistant assistants because both clarity
    completeness correctness depth each explanation furthermore helpfulness it it's its
    justification moreover neither output outputs rationale reason reasoning reasons relevance
    response responses safety since the this tone unlike whereas while"""
)
"""The first word of a sentence that explains a verdict."""

CLAUSE_OPENERS = _words("because both it it's its neither since this unlike whereas while")
"""The same for a clause that follows a verdict: ", the runner-up" explains nothing."""

PRONOUNS = _words("both i it it's its neither one that the there these they this we which who")
"""A part of a sentence that begins with one has a subject of its own."""

HEDGES = (
    r"(?:cannot|can't|can not|could(?: not|n't)|do(?: not|n't)|did(?: not|n't)|unable to|hard to|"
    r"difficult to|impossible to|not sure|no idea|how to)(?: really| quite)? ?"
    r"(?:choose|decide|determine|judge|know|pick|say|t[e]ll|which|who|$)|\b(?:undecided|give up)\b"
)
"""In the sentence before a verdict they leave it open: a regular expression."""

CONCLUSIONS = (
    r"\W*(?:all in all|conclusion|final\w*|hence|in (?:conclusion|summary|the end)|on balance"
    r"|overall|so|therefore|thus|to (?:conclude|sum up|summarize))\b"
)
"""How a sentence begins that concludes: a regular expression."""

BETTER_IN_OTHER_LANGUAGES = (
    r"\b(?:beste|besser|beter|daha iyi|gagne|gana|ganha|lebih baik|lepsz[aey]|meilleure?|mejor"
    r"|melhor|migliore|overwinnaar|préfère|préférable|Urteil|vainqueur|vence|verdetto|veredicto)\b"
    r"|лучш|победи|вердикт|выбираю|更好|更佳|更优|更優|优于|優於|胜出|勝出|选择|選擇|裁决|裁決|判定"
    r"|優れ|より良|方が良|勝ち|더 좋|더 나|더 낫|승자|बेहतर|أفضل|بہتر"
)
"""Comparisons and verdicts of other languages: a regular expression. Before a verdict, a sentence
with one of them must name the verdict's side."""

VERDICT_NOUNS = _words("decision judgement judgment ruling verdict verdicts")

QUESTION_OPENERS = _words("are does for given is of that with")
"""No statement begins with them: "Is Output (a) better", "Given Output (a)"."""

LEADS = (
    "after|all things considered|although|based on|because|both|compar(?:ed|ing)|considering|"
    "finally|for (?:this|these|the (?:above|following)) reasons?|given|having|however|judging by|"
    "in (?:conclusion|light of|my (?:assessment|judge?ment)|short|sum|summary|total|view of)|"
    "looking at|on balance|overall|since|taking|though|to (?:conclude|sum up|summarize)|upon|"
    "weighing|whereas|while"
)
"""How a clause begins that leads to a verdict: a regular expression."""
