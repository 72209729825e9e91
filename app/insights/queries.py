"""SQL of the agreement page: one grouped read of all live judgments, and the labelers' table."""

from typing import NamedTuple

from sqlalchemy import Float, and_, case, cast, func, select
from sqlalchemy.orm import Session

from app.models import Comparison, Judgment, Prompt, User

PREFERENCES = tuple(range(-3, 4))
PAGE = 50


class Unit(NamedTuple):
    """A comparison: its slices, and how many judgments gave each of PREFERENCES."""

    domain: str
    difficulty: str
    split: str
    purpose: str
    counts: tuple[int, ...]


def units(session: Session, project_id: int) -> list[Unit]:
    """The comparisons that have live judgments, without withdrawn ones."""
    counted = [func.count().filter(Judgment.preference == preference) for preference in PREFERENCES]
    # Grouped by comparison before its slices are joined: fewer and narrower rows to sort.
    judged = (
        select(Judgment.comparison_id, *(n.label(f"n{i}") for i, n in enumerate(counted)))
        .where(Judgment.superseded_at.is_(None))
        .join(Comparison, Comparison.id == Judgment.comparison_id)
        .where(Comparison.project_id == project_id, Comparison.state != "withdrawn")
        .group_by(Judgment.comparison_id)
        .subquery()
    )
    found = (
        select(
            Prompt.domain,
            Prompt.difficulty,
            Prompt.split,
            Comparison.purpose,
            *(judged.c[f"n{i}"] for i in range(len(PREFERENCES))),
        )
        .select_from(judged)
        .join(Comparison, Comparison.id == judged.c.comparison_id)
        .join(Prompt, Prompt.id == Comparison.prompt_id)
    )
    return [
        Unit(domain, difficulty, split, purpose, tuple(counts))
        for domain, difficulty, split, purpose, *counts in session.execute(found)
    ]


class LabelerRow(NamedTuple):
    name: str
    kind: str
    judgments: int
    with_consensus: float | None  # share on the side of the consensus, over decided comparisons of others too
    left_picks: float | None  # share of non-ties where the left response was chosen, where the shown side is known


class LabelerPage(NamedTuple):
    rows: list[LabelerRow]
    total: int


def labelers(session: Session, project_id: int, number: int) -> LabelerPage:
    """A page (from 0) of the labelers, those with most judgments first."""
    decided = Comparison.state.in_(("settled", "in_review", "adjudicated")) & (Comparison.judgment_count > 1)
    agrees = func.sign(Judgment.preference) == func.sign(Comparison.consensus)
    sided = and_(Judgment.swapped.is_not(None), Judgment.preference != 0)
    left = (Judgment.preference < 0) != Judgment.swapped
    judged = (
        select(
            Judgment.labeler_id,
            func.count().label("judgments"),
            func.avg(case((agrees, 1.0), else_=0.0)).filter(decided).label("with_consensus"),
            func.avg(case((left, 1.0), else_=0.0)).filter(sided).label("left_picks"),
        )
        .join(Comparison, Comparison.id == Judgment.comparison_id)
        .where(Comparison.project_id == project_id, Comparison.state != "withdrawn", Judgment.superseded_at.is_(None))
        .group_by(Judgment.labeler_id)
        .subquery()
    )
    found = (
        select(
            User.name,
            User.kind,
            judged.c.judgments,
            cast(judged.c.with_consensus, Float),
            cast(judged.c.left_picks, Float),
            func.count().over(),
        )
        .join(judged, judged.c.labeler_id == User.id)
        .order_by(judged.c.judgments.desc(), User.id)
        .offset(number * PAGE)
        .limit(PAGE)
    )
    rows = session.execute(found).all()
    return LabelerPage([LabelerRow(*row[:5]) for row in rows], rows[0][5] if rows else 0)
