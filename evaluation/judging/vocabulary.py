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
    """beats best better choice choose chose chosen clearer correct deserves excels favor favors
    favour favours fuller go ideal more most nails outperforms pick prefer preferable
    preferred prefers right safer should stronger strongest superior surpasses true verdict
    win winner wins won"""
)
"""Turns a verdict round where the other side gets it, or where it is denied."""

BLAME = _words(
    """bad dangerous error errors fails false flawed harmful incorrect inferior joke less lose loses
    loser lost mistake mistaken nonsense poor unsafe untrue useless weaker worse worst wrong"""
)
"""Turns a verdict round unless the other side gets it."""

NEGATIONS = _words("barely cannot hardly neither never no none nor not nothing scarcely")

CONDITIONS = _words(
    """assuming could if may might only otherwise provided should suppose unless until were when
    whenever would"""
)

FUNCTION_WORDS = _words(
    """a am around be been case did do does it it's its just one ones only or round so that the
    these this those true was way were"""
)

RETRACTIONS = _words(
    """actually arguably changed contradict contradicts contrary correction debatable disagree
    disregard doubt doubtful earlier format formerly guess hypothetical hypothetically imagine
    inconsistent initially instead ironic ironically irony joking kidding lie maybe meant mind
    nevertheless nonetheless oops opposite originally overruled perhaps possibly pretend
    previously probably really reconsider retract reverse reversed revised sarcasm sarcastic
    sarcastically scratch sorry strike supposed swap swapped switch switched uncertain
    undecided unsure wait withdraw"""
)
"""No reason needs them."""

ASIDES = _words("above follows line")
"""Nor does a sentence after a verdict need these."""

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
