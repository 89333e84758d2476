"""`croissant.json`: the data set of a card for machines, with the responsible-AI fields.

Croissant 1.0 and its RAI extension 1.0 (mlcommons.org/croissant, docs/croissant-rai-spec.md). What
the records and their run.json state is filled in; what only people can say of a data set is marked
as theirs, never guessed.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import data_file, provenance
from common.jsonl import Record
from datagen.analysis.card import CardSettings, run_facts, sources

CROISSANT, RAI = "http://mlcommons.org/croissant/1.0", "http://mlcommons.org/croissant/RAI/1.0"

TO_STATE = "Not stated yet: to be written by those who publish the data set."

AUTHORS_FIELDS = (
    "rai:dataBiases",
    "rai:personalSensitiveInformation",
    "rai:dataSocialImpact",
    "rai:dataReleaseMaintenancePlan",
)
"""Fields that no record can fill in."""

USES = "Instruction tuning of language models, and research on them, within its limitations."

_TERMS = (
    "citeAs column conformsTo data dataType examples extract field fileObject fileProperty fileSet "
    "format includes isLiveDataset jsonPath key md5 parentField path recordSet references regex "
    "repeated replace separator source subField transform"
).split()

_SPECIAL = {
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
}

_FORMS = {
    ".jsonl": ("application/jsonlines", "column"),
    ".json": ("application/json", "jsonPath"),
    ".csv": ("text/csv", "column"),
    ".tsv": ("text/tab-separated-values", "column"),
}
"""Ending of a data file -> its media type, and how a field is found in it."""

_TYPES = {str: "sc:Text", int: "sc:Integer", float: "sc:Float", bool: "sc:Boolean"}


def context() -> dict[str, Any]:
    """The `@context` that Croissant 1.0 prescribes, with the RAI prefix."""
    return {
        "@language": "en",
        "@vocab": "https://schema.org/",
        "sc": "https://schema.org/",
        "cr": "http://mlcommons.org/croissant/",
        "rai": "http://mlcommons.org/croissant/RAI/",
        "dct": "http://purl.org/dc/terms/",
        **{name: f"cr:{name}" for name in _TERMS},
        **_SPECIAL,
    }


def croissant(settings: CardSettings, path: Path, records: Sequence[Record]) -> dict[str, Any]:
    """The content of croissant.json.

    Args:
      path: the data file, which is published beside it.
      records: its records.
    """
    facts, notice = list(run_facts(path).values()), " ".join(settings.notice.split())
    days = [fact[name][:10] for fact in facts for name in ("start", "end") if name in fact]
    steps = [f"{name}: {value}" for fact in facts for name, value in fact.items()]
    made = "; ".join(sources(records))
    models = sorted({str(model) for record in records if (model := _model(record))})
    form, _ = _FORMS.get(path.suffix, ("application/octet-stream", ""))
    content = {
        "@context": context(),
        "@type": "sc:Dataset",
        "name": settings.title,
        "description": f"{len(records):,} instructions with answers. {notice}".strip(),
        "conformsTo": [CROISSANT, RAI],
        "license": settings.license,
        "keywords": ["instruction-tuning", *settings.tags],
        **({"inLanguage": list(settings.language)} if settings.language else {}),
        **({"dateCreated": max(days)} if days else {}),
        "distribution": [
            {
                "@type": "cr:FileObject",
                "@id": "data",
                "name": path.name,
                "contentUrl": path.name,
                "contentSize": f"{path.stat().st_size} B",
                "encodingFormat": form,
                "sha256": provenance.sha256(path),
            }
        ],
        "recordSet": _record_sets(path),
        "rai:dataCollection": f"Sources of the records: {made}.",
        "rai:dataLimitations": notice or TO_STATE,
        "rai:dataUseCases": USES,
        **dict.fromkeys(AUTHORS_FIELDS, TO_STATE),
    }
    if days:
        content["rai:dataCollectionTimeFrame"] = sorted({min(days), max(days)})
    if models:
        content["rai:dataCollectionType"] = "Synthetic data: records written by models"
        content["rai:machineAnnotationTools"] = models
    if steps:
        content["rai:dataPreprocessingProtocol"] = "; ".join(steps)
    return content


def _model(record: Record) -> Any:
    source = record.get("source")
    return source.get("model") if isinstance(source, dict) else None


def _record_sets(path: Path) -> list[dict[str, Any]]:
    """The fields of the file that always have values of one simple type; none of a packed one."""
    if path.suffix not in _FORMS:
        return []
    records = [record for _, record in data_file.read(path)]  # as they are, without added ids
    fields, (_, extract) = [], _FORMS[path.suffix]
    for name in records[0]:
        kinds = {type(record.get(name)) for record in records}
        if len(kinds) == 1 and (kind := _TYPES.get(kinds.pop())):
            fields.append(
                {
                    "@type": "cr:Field",
                    "@id": f"records/{name}",
                    "name": name,
                    "dataType": kind,
                    "source": {
                        "fileObject": {"@id": "data"},
                        "extract": {extract: name if extract == "column" else f"$[*].{name}"},
                    },
                }
            )
    return [{"@type": "cr:RecordSet", "@id": "records", "name": "records", "field": fields}]
