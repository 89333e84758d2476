"""The report's leaderboards: systems and references in one order."""

from collections.abc import Iterator

from common.reports.charts import percent
from evaluation.judgements.verdicts import Matchup
from evaluation.reporting.content import ReportContent
from evaluation.reporting.table_formats import Table
from evaluation.statistics.leaderboard import MEAN_RATING, Standing


def tables(content: ReportContent) -> Iterator[Table]:
    """One for each judge and benchmark."""
    results, systems = content.results, content.systems
    for (judge, benchmark), board in results.leaderboards.items():
        headline = results.headline[judge, benchmark]
        lines = []
        for name, found in board.standings.items():
            label = f"{name} (reference)" if found.is_reference else systems[name].label
            rate = results.rates.get(Matchup(judge, benchmark, headline, name))
            shown = percent(rate.rate) if rate and not found.is_reference else "–"
            lines.append([label, *_numbers(found), shown, f"{found.items:,}"])
        caption = (
            f"Leaderboard of {benchmark} by {judge}: Bradley-Terry ratings on Elo's scale, with "
            f"95 % intervals. {MEAN_RATING:.0f} is the mean, and 400 points are odds of 10 to 1; "
            "a tie is half a win. Ranks: those that pairwise 95 % intervals leave possible. "
            f"Win rate: against {headline}, in per cent."
        )
        if board.misfit is not None:
            caption += (
                " One number for each player cannot hold all pairs: the largest difference of a "
                f"pair's win rate from the model's is {percent(board.misfit)} points."
            )
        if any(found.rating is None for found in board.standings.values()):
            caption += (
                " No finite rating fits a player that lost, or won, no verdict against the others "
                "(unbeaten, never won), or that shares no chain of wins and losses with them (not "
                "comparable)."
            )
        head = ["Player", "Rating", "Rank", "Win rate", "Comparisons"]
        yield Table(caption, head, lines)


def _numbers(found: Standing) -> list[str]:
    """Rating and rank."""
    if found.rating is None:
        return [found.note, "–"]
    rank = f"{found.best_rank}" + f"–{found.worst_rank}" * (found.best_rank != found.worst_rank)
    return [f"{found.rating:.0f} [{found.low:.0f}, {found.high:.0f}]", rank]
