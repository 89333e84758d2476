"""How numbers are written in the tables of a report."""

from common.reports.charts import percent
from evaluation.scoring.lengths import Stratum
from evaluation.scoring.results import Difference
from evaluation.scoring.score import WinRate


def interval(rate: WinRate | Stratum | None) -> str:
    """A rate and its interval, in per cent.

    >>> interval(Stratum(8, 4, rate=0.5, low=0.41, high=0.59)), interval(None)
    ('50.0 [41.0, 59.0]', '–')
    """
    if rate is None or rate.rate is None:
        return "–"
    return f"{percent(rate.rate)} [{percent(rate.low)}, {percent(rate.high)}]"


def number(value: float | None, form: str = ".2f") -> str:
    """A number in a format, or a dash.

    >>> number(0.456), number(None)
    ('0.46', '–')
    """
    return "–" if value is None else f"{value:{form}}"


def points(found: Difference) -> str:
    """A difference and its interval, in percentage points.

    >>> points(Difference(9, 0.123, low=-0.01, high=0.2, p=0.1, p_holm=0.2, p_report=0.3))
    '+12.3 [-1.0, +20.0]'
    """
    return f"{100 * found.difference:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"


def number_of_p(p: float) -> str:
    """A p-value in a column of them.

    >>> number_of_p(0.0321), number_of_p(1e-9)
    ('0.0321', '< 0.0001')
    """
    return "< 0.0001" if p < 1e-4 else f"{p:.4f}"


def p_text(p: float) -> str:
    """A p-value in a sentence.

    >>> p_text(0.0321), p_text(1e-9), p_text(1)
    ('p = 0.032', 'p < 0.001', 'p = 1.000')
    """
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
