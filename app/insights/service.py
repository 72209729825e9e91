"""Agreement of a project's labelers: live figures of the whole project, and the full table."""

from collections.abc import Collection
from typing import NamedTuple

import numpy as np
from sqlalchemy.orm import Session

from app.domain import agreement_table
from app.domain.agreement_table import PREFERENCES, Table
from app.domain.bootstrap import affordable
from app.domain.figures import Figures, Patterns
from app.insights import queries
from app.models.user import USER_KINDS

# By default a page is about people's judgments, not machines'.
PEOPLE = ("person", "imported")
ANSWERS = len(PREFERENCES)  # number of codes per kind of labeler in AgreementTally.answers


class Live(NamedTuple):
    """Figures of the whole project, as of the last judgment."""

    figures: Figures
    preferences: dict[int, int]  # judgments by preference
    judgments_by_kind: dict[str, int]  # by all kinds of labelers, including those left out


def live(session: Session, project_id: int, kinds: Collection[str] = PEOPLE) -> Live:
    """Return figures over the live judgments of labelers of these kinds, from counts that every judgment updates.

    Costs the same for a thousand and a million judgments, because it reads only the distinct patterns of answers. The
    same judgments count as in `queries.judgments`. Patterns do not contain everything, so the table has figures that
    these lack: Cohen's kappa needs to know who answered, and intervals would be too narrow without knowing which
    comparisons belong to one ranking.
    """
    tallies = queries.tally(session, project_id)
    by_code = np.zeros((len(tallies), len(USER_KINDS) * ANSWERS), dtype=np.int64)
    for row, tally in zip(by_code, tallies, strict=True):
        np.add.at(row, tally.answers, 1)
    by_kind = by_code.reshape(-1, len(USER_KINDS), ANSWERS)
    times = np.array([tally.n for tally in tallies], dtype=np.int64)
    counts = by_kind[:, [kind in kinds for kind in USER_KINDS]].sum(axis=1)

    judged = counts.any(axis=1)
    patterns, pattern = agreement_table.distinct(counts[judged])
    frequencies = np.bincount(pattern, times[judged], minlength=len(patterns)).astype(np.int64)
    categories = 2 + int(queries.scales(session, project_id).has_tie)
    replicates = 0 if queries.has_rankings(session, project_id) else affordable(len(patterns))
    figures = Patterns(patterns, PREFERENCES).figures(
        np.arange(len(patterns)), frequencies, categories, np.random.default_rng(0), replicates
    )
    said = (counts * times[:, None]).sum(axis=0)
    of_kinds = (by_kind.sum(axis=2) * times[:, None]).sum(axis=0)
    return Live(
        figures,
        {int(preference): int(n) for preference, n in zip(PREFERENCES, said, strict=True)},
        {kind: int(n) for kind, n in zip(USER_KINDS, of_kinds, strict=True)},
    )


def table(session: Session, project_id: int, kinds: Collection[str] = PEOPLE) -> Table:
    """Compute all figures from all judgments. Takes a few seconds for a million."""
    judgments = queries.judgments(session, project_id, kinds, queries.scales(session, project_id).aspects)
    return agreement_table.table(judgments)
