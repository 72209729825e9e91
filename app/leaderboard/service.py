"""The leaderboard of a project's policies, fitted from the judgments between them."""

from collections.abc import Collection, Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from app.domain import leaderboard
from app.domain.formatting import formatting, relative
from app.domain.leaderboard import Board, Matches
from app.leaderboard import queries

# At most this many of the newest judgments are read. 100,000 take some seconds: benchmarks/leaderboard.py.
MOST = 100_000


class Summary(NamedTuple):
    """Data for the leaderboard page.

    Attributes:
        board: None if the project has no policy.
        policies: names by id, oldest first.
        counted: number of judgments that count, by kind of labeler, including kinds that were not asked for.
        left_out: number of judgments between policies that do not count, by reason: see `queries.counts`.
    """

    board: Board | None
    policies: dict[int, str]
    counted: dict[str, int]
    left_out: dict[str, int]


def summary(session: Session, project_id: int, kinds: Collection[str], reference: int | None = None) -> Summary:
    """Read the judgments of labelers of these kinds and fit the board.

    Args:
        reference: a policy id; an id that is not a policy of the project is treated as None.
    """
    policies = queries.policies(session, project_id)
    counted: dict[str, int] = {}
    left_out: dict[str, int] = {}
    for reason, kind, n in queries.counts(session, project_id):
        if not reason:
            counted[kind] = n
        elif kind in kinds:
            left_out[reason] = left_out.get(reason, 0) + n
    board = None
    if policies:
        found = matches(session, project_id, kinds)
        board = leaderboard.board(found, list(policies), reference if reference in policies else None)
    return Summary(board, policies, counted, left_out)


def matches(session: Session, project_id: int, kinds: Collection[str], most: int = MOST) -> Matches:
    """Return the judgments as arrays for the board."""
    rows = queries.rows(session, project_id, kinds, most)
    ids = sorted({each for row in rows for each in (row.completion_a, row.completion_b)})
    measured = {id_: (tokens, len(text), *formatting(text)) for id_, tokens, text in queries.texts(session, ids)}
    style = np.zeros((len(rows), len(leaderboard.STYLES)))
    for at, row in enumerate(rows):
        (tokens_a, length_a, *counts_a), (tokens_b, length_b, *counts_b) = (
            measured[row.completion_a],
            measured[row.completion_b],
        )
        # Imported responses have no token count; then characters are compared on both sides.
        if tokens_a is not None and tokens_b is not None:
            length_a, length_b = tokens_a, tokens_b
        style[at] = [relative(a, b) for a, b in zip((length_a, *counts_a), (length_b, *counts_b), strict=True)]

    def whole(values: Iterable[int]) -> NDArray[np.int64]:
        return np.fromiter(values, dtype=np.int64, count=len(rows))

    return Matches(
        a=whole(row.a for row in rows),
        b=whole(row.b for row in rows),
        outcome=-np.sign(whole(row.preference for row in rows)),  # a preference is towards B
        position=np.array([0.0 if row.swapped is None else -1.0 if row.swapped else 1.0 for row in rows]),
        style=style,
        prompt=whole(row.prompt for row in rows),
        labeler=whole(row.labeler for row in rows),
    )
