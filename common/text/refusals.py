"""Answers that decline to answer, recognized by their first words, in the commonest languages."""

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
_LANGUAGES = {  # an apology, "I cannot", what is declined; the last two in any order
    "ar": (
        "آسف|أعتذر|عذر|للأسف|يؤسفني",
        "لا يمكنني|لا أستطيع|لن أتمكن|غير قادر",
        "مساعد|تقديم|الإجاب|تلبية",
    ),
    "bn": ("দুঃখিত|আমি |ক্ষমা", "পারব না|পারছি না|পারি না|অক্ষম", "সাহায্য|পরামর্শ|উত্তর"),
    "de": (
        r"(?:es )?tut mir|leider|entschuldig|ich",
        r"(?:ich (?:kann|darf)|(?:kann|darf) ich)\b[^.!?\n]{0,60}?\b(?:nicht|kein)",
        "helfen|geben|beantworten|anbieten|bereitstellen|unterstützen",
    ),
    "es": (
        r"lo siento|lo lamento|lamentablemente|disculp|perdón|me temo",
        r"no (?:te |le |os )?(?:puedo|podemos)|no me es posible",
        "ayudar|asistir|proporcionar|responder|ofrecer|brindar|dar(?:te|le)?\\b",
    ),
    "fr": (
        r"(?:je suis )?(?:vraiment |sincèrement )?(?:désol|navr)|malheureusement|je regrette",
        r"je ne (?:peux|puis|suis pas en mesure)",
        "aider|fournir|donner|répondre|assister|proposer",
    ),
    "hi": ("मुझे|क्षमा|माफ|खेद|मैं ", "नहीं कर सकत|नहीं दे सकत|असमर्थ", "मदद|सहायता|सलाह|उत्तर|जवाब"),
    "id": (
        r"(?:mohon |saya (?:minta|mohon) )?maaf|sayangnya",
        r"(?:saya )?(?:tidak|belum) (?:bisa|dapat)",
        "membantu|memberi|menjawab|memenuhi",
    ),
    "ja": (
        "申し訳|すみません|恐れ入り|残念ながら",
        "できません|できかね|いたしかね|できない",
        "答え|回答|手伝|協力|提供|助言|対応",
    ),
    "pt": (
        r"desculp|sinto muito|lamento|infelizmente|peço desculpa",
        r"não (?:posso|consigo|poderei|sou capaz)",
        "ajudar|fornecer|responder|oferecer|auxiliar|atender|dar\\b",
    ),
    "ru": (
        r"извин|прости|к сожалению|прошу прощения|мне (?:очень )?жаль",
        r"(?:я )?не (?:могу|смогу|в состоянии)",
        "помочь|помогать|предостав|ответить|выполнить|дать|давать",
    ),
    "ur": ("معذرت|معاف|مجھے افسوس|افسوس|میں ", "نہیں کر سکت|نہیں دے سکت|قاصر", "مدد|مشورہ|جواب"),
    "zh": (
        r"(?:很|非常)?(?:抱歉|遗憾|遺憾)|对不起|對不起|不好意思|作为|作為",
        "我?(?:无法|無法|不能|不便)",
        "提供|回答|帮助|幫助|协助|協助|满足|處理|处理|给出",
    ),
}


def _declines(sorry: str, cannot: str, help: str) -> str:
    """A pattern: an apology, then both others soon; or "I cannot", then help in its sentence."""
    within = r"(?=[^\n]{0,120}?(?:%s))"
    return (
        rf"(?:{sorry}){within % cannot}{within % help}"
        rf"|(?:{cannot})[^.!?。।\n]{{0,40}}?(?:{help})"
    )


_NOT_ENGLISH = (_declines(*words) for words in _LANGUAGES.values())
_REFUSAL = re.compile(rf"\W*+(?:{'|'.join([*_OPENINGS, *_NOT_ENGLISH])})", re.IGNORECASE)


def is_refusal(text: str) -> bool:
    """Whether an answer begins as refusals do: a heuristic, not a judgement.

    In English and in Arabic, Bengali, Chinese, French, German, Hindi, Indonesian, Japanese,
    Portuguese, Russian, Spanish and Urdu.

    >>> is_refusal("I'm sorry, but I can't help with that."), is_refusal("As an AI, I cannot say.")
    (True, True)
    >>> is_refusal("I'm sorry to hear that you can't sleep."), is_refusal("You cannot drive yet.")
    (False, False)
    >>> is_refusal("Lo siento, no puedo ayudar con eso."), is_refusal("No puedo dormir: ¿por qué?")
    (True, False)
    >>> is_refusal("I'm really sorry that you're feeling this way, but I'm unable to help.")
    True
    """
    return bool(_REFUSAL.match(text))
