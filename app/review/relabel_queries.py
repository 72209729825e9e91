"""SQL of relabeling: asking decided comparisons again under a newer rubric version."""

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Select,
    any_,
    case,
    exists,
    func,
    insert,
    literal,
    select,
    update,
)
from sqlalchemy.orm import Session, aliased

from app.access.queries import may_label
from app.models import Comparison, Judgment, LabelerGroup, LabelerGroupMember, Lease, Prompt, Rubric, User
from app.review.forms import RelabelForm

DECIDED = ("settled", "in_review", "adjudicated")
# Repeats and calibration items measure labelers, not responses.
PURPOSES = ("train", "heldout", "human_eval")
PREFERENCES = tuple(range(-4, 5))
# Columns copied from the old comparison. Not its digest: an import uses that to recognize the old judgments.
_KEPT = (
    "project_id",
    "prompt_id",
    "completion_a_id",
    "completion_b_id",
    "round_id",
    "purpose",
    "priority",
    "selection",
    "external_id",
    "reward_p_b",
    "reward_model_id",
    "reward_trained",
)


def _fitting(project_id: int, form: RelabelForm) -> list[ColumnElement[bool]]:
    """Conditions on comparisons that match the form."""
    said = Judgment.comparison_id == Comparison.id, Judgment.superseded_at.is_(None)
    found = [
        Comparison.project_id == project_id,
        Comparison.state.in_(DECIDED),
        Comparison.purpose.in_(PURPOSES),
        Comparison.rubric_id != form.rubric,
    ]
    if form.slice:
        name, _, value = form.slice.partition("=")
        if name == "purpose":
            found.append(Comparison.purpose == value)
        else:
            found.append(exists().where(Prompt.id == Comparison.prompt_id, getattr(Prompt, name) == value))
    if form.flag:
        found.append(exists().where(*said, Judgment.flags.contains([form.flag])))
    if form.aspect:
        found.append(exists().where(*said, Judgment.aspects.has_key(form.aspect)))
    if form.agreement:
        found.append(Comparison.agreement < int(form.agreement) / 100)
    return found


def count(session: Session, project_id: int, form: RelabelForm) -> int:
    return session.scalar(select(func.count()).select_from(Comparison).where(*_fitting(project_id, form))) or 0


def lock(session: Session, project_id: int, form: RelabelForm, limit: int) -> list[int]:
    """Lock at most `limit` matching comparisons until the transaction ends; the random choice is the
    same every time."""
    fitting = _fitting(project_id, form)
    drawn = select(Comparison.id).where(*fitting).order_by(func.md5(func.concat(Comparison.id))).limit(limit)
    # Check the conditions again, to leave out rows that changed while this waited for their locks.
    locked = select(Comparison.id).where(Comparison.id.in_(drawn), *fitting).order_by(Comparison.id)
    return list(session.scalars(locked.with_for_update(of=Comparison, key_share=True)))


def ask_again(session: Session, project_id: int, ids: Sequence[int], rubric_id: int, overlap: int) -> None:
    """Open a copy of each comparison under the rubric; withdraw the old ones and supersede their judgments.

    A pair of a ranking is asked about alone. A copy stays kept for a group or a person if they can give as many
    judgments as are wanted.
    """
    these = literal(list(ids), ARRAY(BigInteger))
    groups, labelers = _who_can(session, project_id, overlap)
    old = select(
        *(getattr(Comparison, name) for name in _KEPT),
        literal(rubric_id, BigInteger),
        literal(overlap),
        Comparison.id,
        case((Comparison.group_id == any_(literal(groups, ARRAY(BigInteger))), Comparison.group_id)),
        case((Comparison.labeler_id == any_(literal(labelers, ARRAY(BigInteger))), Comparison.labeler_id)),
    ).where(Comparison.id == any_(these))
    columns = (*_KEPT, "rubric_id", "overlap", "relabel_of_id", "group_id", "labeler_id")
    session.execute(insert(Comparison).from_select(columns, old.order_by(Comparison.id)))
    # Labelers who read other people's judgments of the old comparison cannot judge the new one either.
    given_up = (
        select(Comparison.id, Lease.labeler_id, literal(False), literal("recused"), func.now())
        .join(Lease, Lease.comparison_id == Comparison.relabel_of_id)
        .where(Comparison.relabel_of_id == any_(these), Lease.state == "recused")
    )
    recused = ("comparison_id", "labeler_id", "swapped", "state", "expires_at")
    session.execute(insert(Lease).from_select(recused, given_up))
    live = update(Judgment).where(Judgment.comparison_id == any_(these), Judgment.superseded_at.is_(None))
    quietly = {"synchronize_session": False}
    session.execute(live.values(superseded_at=func.now(), superseded_for="relabeled"), execution_options=quietly)
    replaced = update(Comparison).where(Comparison.id == any_(these))
    session.execute(replaced.values(state="withdrawn", flagged=False), execution_options=quietly)
    # Their open repeats and calibration items rely on answers under the old rubric.
    repeats = update(Comparison).where(Comparison.repeat_of_id == any_(these), Comparison.state == "open")
    session.execute(repeats.values(state="withdrawn"), execution_options=quietly)


def _who_can(session: Session, project_id: int, judgments: int) -> tuple[list[int], list[int]]:
    """Return groups of the project that can give a comparison this many judgments, and labelers who can do so alone."""
    groups = (
        select(LabelerGroup.id)
        .join(LabelerGroupMember, LabelerGroupMember.group_id == LabelerGroup.id)
        .join(User, User.id == LabelerGroupMember.labeler_id)
        .where(LabelerGroup.project_id == project_id, *may_label(project_id))
        .group_by(LabelerGroup.id)
        .having(func.count() >= judgments)
    )
    labelers = select(User.id).where(*may_label(project_id))
    return list(session.scalars(groups)), list(session.scalars(labelers)) if judgments == 1 else []


def flags(session: Session, project_id: int) -> list[str]:
    """Return names of the flags in any published rubric version of the project."""
    return _names(session, project_id, "flags")


def aspects(session: Session, project_id: int) -> list[str]:
    return _names(session, project_id, "aspects")


def _names(session: Session, project_id: int, column: str) -> list[str]:
    published = select(getattr(Rubric, column)).where(Rubric.project_id == project_id, Rubric.version.is_not(None))
    return sorted({entry["name"] for entries in session.scalars(published) for entry in entries})


class Progress(NamedTuple):
    """asked: comparisons asked again under a rubric version. decided: how many of them have a new result."""

    asked: int
    decided: int


def progress(session: Session, rubric_id: int) -> Progress:
    again = select(func.count(), func.count().filter(Comparison.state.in_(DECIDED)))
    row = session.execute(
        again.where(
            Comparison.relabel_of_id.is_not(None), Comparison.rubric_id == rubric_id, Comparison.state != "withdrawn"
        )
    ).one()
    return Progress(*row)


class Pattern(NamedTuple):
    """A pattern of answers to comparisons that were decided before and after.

    before, after: how many answers gave each of PREFERENCES. comparisons: how many comparisons have this pattern.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    comparisons: int


def patterns(session: Session, rubric_id: int) -> list[Pattern]:
    """Return patterns of the comparisons that were asked again under the version and are decided, in order."""
    old, new = aliased(Comparison), aliased(Comparison)
    again = (
        select(old.id.label("old_id"), new.id.label("new_id"))
        .join(old, old.id == new.relabel_of_id)
        .where(new.rubric_id == rubric_id, new.state.in_(DECIDED))
        .cte("again")
    )

    def counted(of: ColumnElement[int], *standing: ColumnElement[bool]) -> Select[tuple[int, ...]]:
        counts = [func.count().filter(Judgment.preference == value).label(f"n{value}") for value in PREFERENCES]
        return (
            select(again.c.new_id, *counts)
            .join(Judgment, Judgment.comparison_id == of)
            .where(*standing)
            .group_by(again.c.new_id)
        )

    before = counted(again.c.old_id, Judgment.superseded_for == "relabeled").subquery()
    after = counted(again.c.new_id, Judgment.superseded_at.is_(None)).subquery()
    counts = [side.c[f"n{value}"] for side in (before, after) for value in PREFERENCES]
    found = select(*counts, func.count()).join(after, after.c.new_id == before.c.new_id)
    size = len(PREFERENCES)
    return [
        Pattern(tuple(row[:size]), tuple(row[size : 2 * size]), row[2 * size])
        for row in session.execute(found.group_by(*counts).order_by(*counts))
    ]
