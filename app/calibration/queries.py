"""SQL of the calibration page: every item, and how people answered it."""

from datetime import datetime
from typing import NamedTuple

from sqlalchemy import ColumnElement, Double, Integer, Subquery, and_, cast, false, func, select
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.orm import Session

from app.access.members import roles_in
from app.labeling.conditions import met
from app.models import AuditEvent, Comparison, Judgment, Prompt, Rubric, User

PEOPLE = ("person", "imported")
# An answer counts as reliable if the labeler is right on this share of the other items, with at least this many others.
RELIABLE, LEAST_OTHERS = 0.7, 3
LEAST_RELIABLE = 3  # reliable answers needed before an item can be doubtful
EXCERPT = 160
SHOWN_CHANGES = 20


class Item(NamedTuple):
    """A calibration item, with its copies under other rubric versions.

    Attributes:
        id: the newest copy's. made_of: the comparison it is a copy of, if any.
        answers, right: by people. reliable, reliable_right: the same, only by people who are right elsewhere.
        machines, machines_right: by simulated labelers and AI judges.
        is_doubtful: at least half of the reliable people disagree with the known answer.
        is_hidden: the viewer may still be asked this item.
    """

    id: int
    made_of: int | None
    state: str
    gold: int
    strengths: int
    allow_tie: bool
    version: int
    question: str
    answers: int
    right: int
    reliable: int
    reliable_right: int
    machines: int
    machines_right: int
    last_at: datetime | None
    is_doubtful: bool
    is_hidden: bool


def _items(project_id: int) -> Subquery:
    """Select all items of the project. Copies under other rubric versions share `root` and `side`."""
    root = func.coalesce(Comparison.repeat_of_id, Comparison.id).label("root")
    columns = Comparison.id, Comparison.gold, Comparison.state, root, func.sign(Comparison.gold).label("side")
    found = select(*columns).where(Comparison.project_id == project_id, Comparison.gold.is_not(None))
    return found.subquery("items")


def _answers(project_id: int) -> Subquery:
    """Select answers to items by root and side, with how well their labelers did on the other items in use."""
    items = _items(project_id)
    is_right = func.coalesce(func.sign(Judgment.preference) == items.c.side, false())
    counts = items.c.state == "open"

    def elsewhere(what: ColumnElement[bool]) -> ColumnElement[int]:
        """Count over the labeler's answers to other items."""
        return func.count().filter(what).over(partition_by=Judgment.labeler_id) - cast(what, Integer)

    others, others_right = elsewhere(counts), elsewhere(and_(counts, is_right))
    return (
        select(
            items.c.root,
            items.c.side,
            is_right.label("is_right"),
            User.kind.in_(PEOPLE).label("is_person"),
            and_(others >= LEAST_OTHERS, others_right >= RELIABLE * others).label("is_reliable"),
            Judgment.created_at.label("at"),
        )
        .join(items, items.c.id == Judgment.comparison_id)
        .join(User, User.id == Judgment.labeler_id)
        .where(Judgment.superseded_at.is_(None))
        .subquery("answers")
    )


def _counted(project_id: int) -> Subquery:
    answers = _answers(project_id)
    person, right, reliable = answers.c.is_person, answers.c.is_right, answers.c.is_person & answers.c.is_reliable

    def count(*conditions: ColumnElement[bool]) -> ColumnElement[int]:
        return func.count().filter(*conditions)

    doubted = (count(reliable) >= LEAST_RELIABLE) & (2 * count(reliable, right) <= count(reliable))
    return (
        select(
            answers.c.root,
            answers.c.side,
            count(person).label("answers"),
            count(person, right).label("right"),
            count(reliable).label("reliable"),
            count(reliable, right).label("reliable_right"),
            count(~person).label("machines"),
            count(~person, right).label("machines_right"),
            func.max(answers.c.at).label("last_at"),
            doubted.label("is_doubtful"),
        )
        .group_by(answers.c.root, answers.c.side)
        .subquery("counted")
    )


def items(session: Session, project_id: int, viewer: User, limit: int, offset: int) -> list[Item]:
    """Return items in use first, the doubtful ones before the others, then by the share that people got right."""
    every = _items(project_id)
    newest = (
        select(every)
        .ext(distinct_on(every.c.root, every.c.side))
        .order_by(every.c.root, every.c.side, every.c.id.desc())
        .subquery("newest")
    )
    counted = _counted(project_id)
    numbers = [func.coalesce(counted.c[name], 0) for name in Item._fields[8:14]]
    doubted = func.coalesce(counted.c.is_doubtful, false())
    labels = "labeler" in roles_in(session, project_id, viewer)
    hidden = and_(Comparison.state == "open", ~met(viewer.id, "recused")) if labels else false()
    share = cast(counted.c.right, Double) / func.nullif(counted.c.answers, 0)
    found = (
        select(
            Comparison.id,
            Comparison.repeat_of_id,
            Comparison.state,
            Comparison.gold,
            Rubric.strengths,
            Rubric.allow_tie,
            Rubric.version,
            func.coalesce(func.left(Prompt.messages[-1]["content"].astext, EXCERPT), ""),
            *numbers,
            counted.c.last_at,
            doubted,
            hidden,
        )
        .join(newest, newest.c.id == Comparison.id)
        .join(Rubric, Rubric.id == Comparison.rubric_id)
        .join(Prompt, Prompt.id == Comparison.prompt_id)
        .outerjoin(counted, (counted.c.root == newest.c.root) & (counted.c.side == newest.c.side))
        .order_by(Comparison.state != "open", doubted.desc(), share.nulls_last(), Comparison.id)
        .limit(limit)
        .offset(offset)
    )
    return [Item(*row) for row in session.execute(found)]


class Totals(NamedTuple):
    """Counts of items in use and retired, of doubtful items in use, and of people's answers to items in use and right
    ones."""

    in_use: int
    retired: int
    doubtful: int
    answers: int
    right: int


def totals(session: Session, project_id: int) -> Totals:
    every, counted = _items(project_id), _counted(project_id)
    used = func.bool_or(every.c.state == "open").label("is_used")
    by_item = select(every.c.root, every.c.side, used).group_by(every.c.root, every.c.side).subquery()
    row = session.execute(
        select(
            func.count().filter(by_item.c.is_used),
            func.count().filter(~by_item.c.is_used),
            func.count().filter(by_item.c.is_used, counted.c.is_doubtful),
            func.coalesce(func.sum(counted.c.answers).filter(by_item.c.is_used), 0),
            func.coalesce(func.sum(counted.c.right).filter(by_item.c.is_used), 0),
        ).outerjoin_from(by_item, counted, (counted.c.root == by_item.c.root) & (counted.c.side == by_item.c.side))
    ).one()
    return Totals(*map(int, row))


class Change(NamedTuple):
    """What somebody did with an item; see `app.labeling.calibration`."""

    at: datetime
    who: str | None
    action: str
    item_id: int
    before: int | None
    gold: int | None


def changes(session: Session, project_id: int) -> list[Change]:
    """Return the latest changes, newest first."""
    details = AuditEvent.details
    found = (
        select(
            AuditEvent.at,
            User.name,
            AuditEvent.action,
            details["item_id"].as_integer(),
            details["before"].as_integer(),
            details["gold"].as_integer(),
        )
        .outerjoin(User, User.id == AuditEvent.actor_id)
        .where(AuditEvent.project_id == project_id, AuditEvent.action.startswith("calibration."))
        .order_by(AuditEvent.id.desc())
        .limit(SHOWN_CHANGES)
    )
    return [Change(*row) for row in session.execute(found)]
