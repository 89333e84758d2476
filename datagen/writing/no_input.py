"""Inputs of a task by which a teacher says that there is none, in the commonest languages.

Only whole inputs count: "No known allergies." is an input. Files of tasks are read more strictly
(common.jsonl.NO_INPUT): there, somebody wrote the field on purpose.
"""

import re
import unicodedata

_ENGLISH = re.compile(
    r"no ?input|n[/.]?a|null|nil|none|empty|blank"
    r"|(?:there is |this task (?:has|needs|requires) )?no (?:additional |extra |further |other )?"
    r"inputs?(?: data| text)?(?: (?:is|are))?"
    r"(?: (?:available|given|necessary|needed|provided|required|specified))?"
    r"(?: for this (?:instruction|question|task))?"
    r"|(?:this task )?does not (?:need|require) (?:an |any )?input"
    r"|(?:an )?input (?:is )?not (?:applicable|necessary|needed|provided|required)"
    r"|(?:none|not) (?:applicable|necessary|needed|provided|required)"
)

_OTHERS = """
无|無|无输入|無輸入|无需输入|無需輸入|无须输入|不需要输入|不需要輸入|没有输入|沒有輸入|无需额外输入|不适用|不適用
कोई नहीं|कोई इनपुट नहीं|कोई इनपुट आवश्यक नहीं|कोई इनपुट आवश्यक नहीं है|इनपुट की आवश्यकता नहीं
इनपुट की आवश्यकता नहीं है|किसी इनपुट की आवश्यकता नहीं|किसी इनपुट की आवश्यकता नहीं है|लागू नहीं
ninguno|ninguna|ninguna entrada|sin entrada|sin entradas|no aplica|no hay entrada
no requiere entrada|no se necesita entrada|no se necesita ninguna entrada|no se requiere entrada
entrada no requerida|no se requiere ninguna entrada|no es necesaria ninguna entrada
aucun|aucune|aucune entrée|aucune entrée nécessaire|aucune entrée requise
aucune entrée n'est requise|aucune entrée n'est nécessaire|aucune saisie requise|pas d'entrée
pas d'entrée requise|sans entrée
pas d'entrée nécessaire|sans objet|non applicable|néant
لا شيء|لا يوجد|لا يوجد إدخال|لا توجد مدخلات|لا يوجد مدخلات|لا يلزم إدخال|لا يلزم أي إدخال
لا ينطبق
لا حاجة إلى إدخال|لا حاجة إلى مدخلات|لا يتطلب إدخال|لا يتطلب أي إدخال|بدون إدخال|بدون مدخلات
কোনোটি নয়|কোনো ইনপুট নেই|কোন ইনপুট নেই|কোনো ইনপুট প্রয়োজন নেই|কোন ইনপুট প্রয়োজন নেই
প্রযোজ্য নয়
ইনপুট প্রয়োজন নেই|ইনপুটের প্রয়োজন নেই|কোনো ইনপুটের প্রয়োজন নেই|কোন ইনপুটের প্রয়োজন নেই
nenhum|nenhuma|nenhuma entrada|nenhuma entrada necessária|nenhuma entrada é necessária
sem entrada
não há entrada|não requer entrada|não é necessária entrada|não é necessária nenhuma entrada
entrada não necessária|não se aplica
нет|нет ввода|нет входных данных|без ввода|без входных данных|ввод не требуется|не требуется
входные данные не требуются|входных данных не требуется|отсутствует|отсутствуют|не применимо
کوئی نہیں|کوئی ان پٹ نہیں|کوئی ان پٹ درکار نہیں|کسی ان پٹ کی ضرورت نہیں|ان پٹ کی ضرورت نہیں
لاگو نہیں|ان پٹ کی ضرورت نہیں ہے|کسی ان پٹ کی ضرورت نہیں ہے
tidak ada|tidak ada input|tidak ada masukan|tidak perlu input|tidak perlu masukan|tidak berlaku
tidak memerlukan input|tidak memerlukan masukan|tidak diperlukan input|tidak diperlukan masukan
keine|keine eingabe|keine eingabe erforderlich|keine eingabe nötig|keine eingabe notwendig
entfällt
es ist keine eingabe erforderlich|kein input|kein input erforderlich|nicht zutreffend
なし|無し|入力なし|入力は不要です|入力は不要|入力不要|入力は必要ありません|該当なし
"""

_EDGES = " \t\n\u00a0\u200b\ufeff.,;:۔!*_`'\"“”«»()[]{}<>（）【】「」。।،؛-–—/"


def _plain(text: str) -> str:
    words = unicodedata.normalize("NFC", text).lower().replace("_", " ").replace("’", "'").split()
    return " ".join(words).strip(_EDGES)


_WORDINGS = frozenset(_plain(line) for line in re.split(r"[|\n]", _OTHERS.strip()))


def means_none(text: str) -> bool:
    """Whether a whole input says that there is none; an empty one does.

    >>> [means_none(text) for text in ("<noinput>", "No input required.", "(N/A)", "无需输入。")]
    [True, True, True, True]
    >>> [means_none(text) for text in ("DNA", "No known allergies.", "No input from the ward.")]
    [False, False, False]
    """
    plain = _plain(text)
    return not plain or plain in _WORDINGS or bool(_ENGLISH.fullmatch(plain))
