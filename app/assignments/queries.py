"""SQL of named assignment: what is open for whom, and giving it to others."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Row,
    any_,
    case,
    exists,
    func,
    literal,
    null,
    or_,
    select,
    update,
)
from sqlalchemy.orm import Session, aliased

from app.judging import LabelingSettings
from app.models import (
    Comparison,
    Judgment,
    LabelerGroup,
    LabelerGroupMember,
    Lease,
    Project,
    ProjectLabeler,
    Prompt,
    User,
)

# Neither calibration items nor repeats are given to people by name: they are measures of them.
ASSIGNABLE = (
    Comparison.state == "open",
    Comparison.offered,
    Comparison.gold.is_(None),
    Comparison.purpose != "repeat",
)


class Held(NamedTuple):
    """How many comparisons are open to somebody, and how many of these nobody has begun; neither id: to everybody."""

    labeler_id: int | None
    group_id: int | None
    name: str
    comparisons: int
    untouched: int


def held(session: Session, project_id: int) -> list[Held]:
    """What is open for whom; everybody first, then groups and people by name."""
    owner = Comparison.labeler_id, Comparison.group_id
    untouched = func.count().filter(Comparison.judgment_count + Comparison.lease_count == 0)
    counted = (
        select(*owner, func.count().label("n"), untouched.label("untouched"))
        .where(Comparison.project_id == project_id, *ASSIGNABLE)
        .group_by(*owner)
        .subquery()
    )
    name = func.coalesce(User.name, LabelerGroup.name, "")
    rows = session.execute(
        select(counted.c.labeler_id, counted.c.group_id, name, counted.c.n, counted.c.untouched)
        .outerjoin(User, User.id == counted.c.labeler_id)
        .outerjoin(LabelerGroup, LabelerGroup.id == counted.c.group_id)
        .order_by(name != "", counted.c.group_id.is_(None), name)
    )
    return [Held(*row) for row in rows]


def priorities(session: Session, project_id: int) -> Sequence[Row[int, int]]:
    """(priority, open comparisons), the most urgent first."""
    counted = select(Comparison.priority, func.count()).where(Comparison.project_id == project_id, *ASSIGNABLE)
    return session.execute(counted.group_by(Comparison.priority).order_by(Comparison.priority.desc())).all()


def labelers(session: Session, project_id: int) -> list[User]:
    """People who can label in the project now, by name."""
    stopped = exists().where(
        ProjectLabeler.project_id == project_id, ProjectLabeler.labeler_id == User.id, ProjectLabeler.state != "active"
    )
    can = User.roles.contains(["labeler"]), User.is_active, User.kind != "imported", ~stopped
    return list(session.scalars(select(User).where(*can).order_by(User.name, User.id)))


def groups(session: Session, project_id: int) -> Sequence[Row[LabelerGroup, int]]:
    """(group, members), by name."""
    members = select(func.count()).where(LabelerGroupMember.group_id == LabelerGroup.id).scalar_subquery()
    found = select(LabelerGroup, members).where(LabelerGroup.project_id == project_id)
    return session.execute(found.order_by(LabelerGroup.name)).all()


class Chosen(NamedTuple):
    """Which open comparisons of a project; see `AssignForm`."""

    held: str
    purpose: str
    slice: str
    value: str
    ids: list[int] | None
    most: int | None


def choose(session: Session, project_id: int, chosen: Chosen, for_labeler: int | None) -> list[int]:
    """Ids of comparisons in the order of the queue, locked; those that somebody is changing now are left out.

    Args:
        for_labeler: without what this person has judged, gave up, or holds now.
    """
    query = select(Comparison.id).where(Comparison.project_id == project_id, *ASSIGNABLE)
    kept = or_(Comparison.labeler_id.is_not(None), Comparison.group_id.is_not(None))
    if chosen.held:
        query = query.where(kept if chosen.held == "kept" else ~kept)
    if chosen.purpose:
        query = query.where(Comparison.purpose == chosen.purpose)
    if chosen.slice:
        column = getattr(Prompt, chosen.slice)
        query = query.join(Prompt, Prompt.id == Comparison.prompt_id).where(column == chosen.value)
    if chosen.ids is not None:
        query = query.where(Comparison.id == _one_of(chosen.ids))
    if for_labeler is not None:
        judged = exists().where(Judgment.comparison_id == Comparison.id, Judgment.labeler_id == for_labeler)
        leased = exists().where(
            Lease.comparison_id == Comparison.id,
            Lease.labeler_id == for_labeler,
            Lease.state.in_(("live", "recused")),
        )
        query = query.where(~judged, ~leased)
    query = query.order_by(Comparison.priority.desc(), Comparison.id)
    if chosen.most is not None:
        query = query.limit(chosen.most)
    return list(session.scalars(query.with_for_update(skip_locked=True, of=Comparison)))


def _one_of(ids: Sequence[int]) -> ColumnElement[Any]:
    return any_(literal(list(ids), ARRAY(BigInteger)))


def let_pairs_follow(session: Session, ids: Sequence[int]) -> None:
    """Gives the other pairs of rankings what the offered one has: one answer is about all of them."""
    offered = aliased(Comparison)
    names = ("labeler_id", "group_id", "overlap", "overlap_max", "grown", "priority")
    changed = update(Comparison).where(Comparison.ranking_id == offered.ranking_id, ~Comparison.offered)
    changed = changed.where(offered.id == _one_of(ids))
    values = {name: getattr(offered, name) for name in names}
    session.execute(changed.values(values), execution_options={"synchronize_session": False})


def set_priority(session: Session, ids: Sequence[int], priority: int) -> None:
    changed = update(Comparison).where(Comparison.id == _one_of(ids))
    session.execute(changed.values(priority=priority), execution_options={"synchronize_session": False})


def keep_for_labeler(session: Session, ids: Sequence[int], labeler_id: int) -> None:
    """They then ask for exactly one judgment more than there are: this person's."""
    begun = Comparison.judgment_count + Comparison.lease_count
    changed = (
        update(Comparison)
        .where(Comparison.id == _one_of(ids))
        .values(
            labeler_id=labeler_id,
            group_id=None,
            overlap=begun + 1,
            overlap_max=None,
            grown=func.least(Comparison.grown, begun),
        )
    )
    session.execute(changed, execution_options={"synchronize_session": False})


def keep_for_group(session: Session, project: Project, ids: Sequence[int], group_id: int | None, members: int) -> None:
    """For a group, or for everybody. They ask for what a new comparison would, of a group at most one of each member;
    of one that has as many already, for one more."""
    settings = LabelingSettings.model_validate(project.labeling)
    columns: dict[str, Any] = {"purpose": Comparison.purpose} | {
        name: select(getattr(Prompt, name)).where(Prompt.id == Comparison.prompt_id).scalar_subquery()
        for name in ("domain", "difficulty", "safety_category")
    }
    rules = []
    for rule in settings.overlap:
        name, _, value = rule.where.partition("=")
        rules.append((columns[name] == value, rule.overlap))
    adaptive = settings.adaptive
    begun = Comparison.judgment_count + Comparison.lease_count
    usual = adaptive.at_least if adaptive else project.overlap
    asked: Any = case(*rules, else_=usual) if rules else literal(usual, BigInteger)
    if group_id is not None:
        asked = func.least(asked, begun + members)
    overlap = func.greatest(asked, begun + 1)
    most: Any = null()
    if adaptive and group_id is None:
        cap = func.greatest(literal(adaptive.at_most, BigInteger), overlap)
        most = case(*[(condition, null()) for condition, _ in rules], else_=cap) if rules else cap
    changed = (
        update(Comparison)
        .where(Comparison.id == _one_of(ids))
        .values(labeler_id=None, group_id=group_id, overlap=overlap, overlap_max=most, grown=0)
    )
    session.execute(changed, execution_options={"synchronize_session": False})
