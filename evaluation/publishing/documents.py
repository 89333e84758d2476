"""All that a report writes for a paper's and a model's readers beside its page."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from common.messages import log
from evaluation.publishing import checklists, eval_results, run_records
from evaluation.publishing.run_records import RunRecord

CHECKLISTS_FOLDER = "checklists"


@dataclasses.dataclass(frozen=True)
class ReportDocuments:
    """What is known beside the judgements."""

    runs: Sequence[RunRecord]
    datasets: Mapping[str, str]  # test set -> data set of the Hub

    @classmethod
    def read(
        cls, workdirs: Sequence[Path], records: Sequence[str], hub_datasets: Sequence[str]
    ) -> Self:
        """Reads the run records.

        Args:
          workdirs: of the judgements reported; those without a run.json are left out.
          records: further runs, as `run_records.read` takes them.
          hub_datasets: BENCHMARK=ORG/NAME[:TASK].

        Raises:
          UsageError, ValueError: a flag or a record is malformed.
        """
        judged = [path for path in workdirs if (path / "run.json").exists()]
        runs = [*run_records.read(judged), *run_records.read(records)]
        return cls(runs, eval_results.hub_datasets(hub_datasets))

    def write(self, output: Path, report: Mapping[str, Any]) -> None:
        """Writes OUTPUT/checklists and, for test sets on the Hub, OUTPUT/eval_results.

        Args:
          report: the content of report.json.

        Raises:
          UsageError: a test set of `datasets` has no result.
          FileNotFoundError: a rubric or choices run is not complete.
        """
        known = [*checklists.report_statements(report), *run_records.statements(self.runs)]
        filled = checklists.fill(known)
        checklists.write(output / CHECKLISTS_FOLDER, filled)
        ends = [str(run.get("end"))[:10] for run in self.runs if run.kind == "judging"]
        won = eval_results.of_report(report, max(ends, default=""))
        found = [*won, *eval_results.of_records(self.runs)]
        eval_results.write(output / eval_results.FOLDER, found, self.datasets)
        for checklist in filled:
            log(f"{checklist.name}: {checklist.answered} of {len(checklist.items)} items answered")
