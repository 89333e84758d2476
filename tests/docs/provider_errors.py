"""The table of docs/provider_errors.md, made of datagen/chat/meanings.py.

python -m tests.docs.provider_errors            prints it
python -m tests.docs.provider_errors --write    replaces it in the document
"""

import re

from datagen.chat.meanings import ERROR_MEANINGS, ErrorMeaning
from tests.conftest import REPOSITORY
from tests.docs import layers

DOCUMENT = REPOSITORY / "docs" / "provider_errors.md"
BEGIN, END = "<!-- errors: made by tests/docs/provider_errors.py -->\n", "<!-- end of errors -->"


def sources(text: str) -> str:
    """Links in place of addresses.

    >>> sources("https://docs.x.com/errors vLLM, as it replies")
    '[docs.x.com](https://docs.x.com/errors) vLLM, as it replies'
    """
    return re.sub(r"https://([^/\s]+)\S*", r"[\1](\g<0>)", text).replace(") [", "), [")


def line(number: int, row: ErrorMeaning) -> str:
    """A row of the table."""
    words = ", ".join(phrase.strip() for phrase in row.phrases.split("|"))
    statuses = row.statuses.replace(".", "x").replace("xxx", "") or "any"
    remedy = row.remedy.format(variable="its variable", model="MODEL", max_tokens="N")
    cells = (str(number), row.meaning, statuses, words or "any", row.cause, remedy)
    return f"| {' | '.join(cells)} | {sources(row.sources)} |"


def table() -> str:
    """All rows, in the order in which they are tried."""
    lines = [line(number, row) for number, row in enumerate(ERROR_MEANINGS, start=1)]
    head = [
        "| | concerns | status | words | cause | remedy | sources |",
        "|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*head, *lines]) + "\n"


if __name__ == "__main__":
    layers.write(DOCUMENT, table(), BEGIN, END)
