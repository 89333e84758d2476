"""Prompts as text files: a system text and a user text with placeholders.

Lines before the first section are comments.
[system]
You are a physician.
[user]
Answer this: {question}
"""

import dataclasses
import hashlib
import re
from pathlib import Path
from typing import Self

from common import paths

_SECTION = re.compile(r"^\[(system|user)\][ \t]*$", re.MULTILINE)
_PLACEHOLDER = re.compile(r"\{([a-z][a-z0-9_]*)\}")


@dataclasses.dataclass(frozen=True)
class Prompt:
    """The wording of a request, with placeholders such as {question}."""

    version: str  # name and hash of the texts: any change of the wording changes it
    system: str  # "" for none
    user: str

    @classmethod
    def read(cls, name: str, folder: Path) -> Self:
        """The prompt `name` of `folder`, or any file whose name ends in .txt.

        Raises:
          FileNotFoundError: there is no such prompt or file; the error lists prompts that exist.
          ValueError: the file does not have the form above, or is not UTF-8.
        """
        path = Path(name) if name.endswith(".txt") else folder / f"{name}.txt"
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            if name.endswith(".txt"):
                raise FileNotFoundError(paths.absence(name, "file")) from None
            texts = {file.stem: file.read_text(encoding="utf-8") for file in folder.glob("*.txt")}
            known = ", ".join(sorted(stem for stem in texts if _SECTION.search(texts[stem])))
            raise FileNotFoundError(
                f"no prompt {name!r}; choose from {known}, or give the path of a .txt file"
            ) from None
        except UnicodeDecodeError:
            raise ValueError(f"{path}: not UTF-8; save it in that encoding") from None
        _, *pieces = _SECTION.split(text)
        sections = dict(zip(pieces[::2], (piece.strip() for piece in pieces[1::2]), strict=True))
        if len(sections) * 2 < len(pieces) or not sections.get("user"):
            raise ValueError(f"{path}: needs one section [user], and one [system] at most")
        system, user = sections.get("system", ""), sections["user"]
        digest = hashlib.sha256(f"{system}\0{user}".encode()).hexdigest()
        return cls(f"{path.stem}@{digest[:10]}", system, user)

    def fill(self, **texts: str) -> tuple[str, str]:
        """(system, user), with each {name} replaced by its text.

        A text may contain anything, even the names of placeholders: it is not filled in again.

        >>> Prompt("v", "", "Compare {one} and {two}.").fill(one="{two}", two="2")
        ('', 'Compare {two} and 2.')

        Raises:
          ValueError: the prompt and the texts do not have the same names.
        """
        placeholders = set(_PLACEHOLDER.findall(self.system + self.user))
        if wrong := placeholders ^ texts.keys():
            raise ValueError(
                f"prompt {self.version} has the placeholders {sorted(placeholders)}; "
                f"{sorted(wrong)} must be in both the prompt and the request, or in neither"
            )

        def fill(text: str) -> str:
            return _PLACEHOLDER.sub(lambda match: texts[match[1]], text)

        return fill(self.system), fill(self.user)
