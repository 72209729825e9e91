"""A labeler's own answers: the list, their figures, and the card for changing an answer."""

from datetime import UTC, datetime
from typing import Literal, NamedTuple

from sqlalchemy.orm import Session

from app.documents import LabelingSettings
from app.domain import ranking, scale
from app.labelers.service import OwnNumbers, own_figures
from app.labeling import answer_queries, queries, recusal
from app.labeling.forms import Draft
from app.labeling.queries import Task
from app.models import Comparison, Judgment, Lease, Project, User

PAGE = 50
EXCERPT = 160


class Answered(NamedTuple):
    """One answer as its labeler sees it. became: empty while it stands, else edited, undone, removed or relabeled."""

    judgment: Judgment
    question: str
    said: str
    aspects: list[str]
    became: str
    can_change: bool


class Mine(NamedTuple):
    """numbers: the figures that the project shows its labelers. older: where the next page begins."""

    numbers: OwnNumbers
    rows: list[Answered]
    older: int | None


def mine(session: Session, project: Project, labeler: User, before: int | None) -> Mine:
    shown = LabelingSettings.model_validate(project.labeling).own_figures
    found = answer_queries.history(session, project.id, labeler.id, before, PAGE + 1)
    judged = [judgment for judgment, *_rest in found[:PAGE]]
    changeable = answer_queries.changeable(session, judged, queries.CHANGEABLE_FOR)
    changeable -= recusal.recused_from(session, changeable, labeler.id)
    rows = [
        Answered(
            judgment=judgment,
            question=excerpt(messages),
            said=_said(judgment, comparison, strengths),
            aspects=[_aspect(name, value, judgment) for name, value in judgment.aspects.items()],
            became=judgment.superseded_for or "",
            can_change=judgment.superseded_at is None and judgment.lease_id is not None and comparison.id in changeable,
        )
        for judgment, comparison, messages, strengths in found[:PAGE]
    ]
    older = judged[-1].id if len(found) > PAGE else None
    return Mine(own_figures(session, project, labeler, shown, _counted_until()), rows, older)


def _counted_until() -> datetime:
    """Return the last midnight, UTC, before which no answer can be changed any more.

    Figures that show how others answered count up to it. They change once a day, so no single answer can be inferred.
    """
    return queries.today(datetime.now(UTC))


def excerpt(messages: list[dict[str, str]]) -> str:
    """Return the beginning of the last message of the prompt."""
    asked = " ".join(messages[-1]["content"][: 4 * EXCERPT].split()) if messages else ""
    return asked if len(asked) <= EXCERPT else f"{asked[:EXCERPT]}…"


def _said(judgment: Judgment, comparison: Comparison, strengths: int) -> str:
    if comparison.ranking_id is not None:
        return "Ranked" if judgment.preference is not None else "Ranked in part, or cannot judge"
    if judgment.preference is None:
        return "Cannot judge"
    if judgment.both_bad:
        return "Both bad"
    shown = scale.canonical(judgment.preference, swapped=bool(judgment.swapped))
    return {step.value: step.label for step in scale.steps(strengths, allow_tie=True)}[shown]


def _aspect(name: str, value: int, judgment: Judgment) -> str:
    shown = scale.canonical(value, swapped=bool(judgment.swapped))
    return f"{name}: {('first', 'same', 'second')[shown + 1]}"


def task_of(session: Session, judgment: Judgment) -> Task:
    """Return the card that a judgment was given on."""
    assert judgment.lease_id is not None, "given at the desk"
    return queries.task(session, judgment.lease_id)


def taken_back(session: Session, task: Task, labeler: User) -> Draft | None:
    """Return the answer that the labeler gave on this card before taking it back."""
    if task.is_new:
        return None
    undone = answer_queries.undone(session, task.position.comparison_id, labeler.id, task.lease_id)
    return as_shown(session, undone) if undone else None


def as_shown(session: Session, judgment: Judgment) -> Draft:
    """Return an answer as its form had it: sides as shown, a ranking as ranks."""
    preference: int | Literal["both_bad", "cannot_judge"] | None = None
    ranks: list[int | None] = []
    lease = session.get(Lease, judgment.lease_id)
    if lease is not None and lease.shown:
        pairs = answer_queries.ranked_pairs(session, judgment)
        if all(said is None for said in pairs.values()):
            preference = "cannot_judge"
        else:
            ranks = ranking.ranks(lease.shown, pairs)
    elif judgment.preference is None:
        preference = "cannot_judge"
    elif judgment.both_bad:
        preference = "both_bad"
    else:
        preference = scale.canonical(judgment.preference, swapped=bool(judgment.swapped))
    aspects = {name: scale.canonical(value, swapped=bool(judgment.swapped)) for name, value in judgment.aspects.items()}
    return Draft(
        preference=preference,
        ranks=ranks,
        aspects=aspects,
        flags=list(judgment.flags),
        rationale=judgment.rationale,
    )
