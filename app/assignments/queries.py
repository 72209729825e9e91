"""SQL of named assignment: for whom open comparisons are kept, and keeping them for others."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    Row,
    and_,
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

from app.access.queries import may_label
from app.db import among
from app.documents import LabelingSettings
from app.labeling.eligibility import is_left_of, left_of, left_of_kept
from app.models import Comparison, LabelerGroup, LabelerGroupMember, Project, Prompt, User
from app.models.comparison import QUEUE_ORDER

# Calibration items and repeats cannot be assigned by name, because they measure labelers.
ASSIGNABLE = (
    Comparison.state == "open",
    Comparison.offered,
    Comparison.gold.is_(None),
    Comparison.purpose != "repeat",
)
# A labeler who has one on the desk may still answer it, so leased comparisons are not stuck.
STUCK = and_(Comparison.lease_count == 0, left_of_kept() == 0)


class Held(NamedTuple):
    """Number of comparisons open to somebody, and how many of them nobody has begun. No id: open to everybody.

    stuck: comparisons that none of the people they are kept for can answer: paused, gone, or done with them.
    """

    labeler_id: int | None
    group_id: int | None
    name: str
    comparisons: int
    untouched: int
    stuck: int


def held(session: Session, project_id: int) -> list[Held]:
    """Count open comparisons by whom they are kept for: everybody first, then groups and people by name."""
    owner = Comparison.labeler_id, Comparison.group_id
    untouched = func.count().filter(Comparison.judgment_count + Comparison.lease_count == 0)
    counted = (
        select(*owner, func.count().label("n"), untouched.label("untouched"), func.count().filter(STUCK).label("stuck"))
        .where(Comparison.project_id == project_id, *ASSIGNABLE)
        .group_by(*owner)
        .subquery()
    )
    name = func.coalesce(User.name, LabelerGroup.name, "")
    rows = session.execute(
        select(counted.c.labeler_id, counted.c.group_id, name, counted.c.n, counted.c.untouched, counted.c.stuck)
        .outerjoin(User, User.id == counted.c.labeler_id)
        .outerjoin(LabelerGroup, LabelerGroup.id == counted.c.group_id)
        .order_by(name != "", counted.c.group_id.is_(None), name)
    )
    return [Held(*row) for row in rows]


def priorities(session: Session, project_id: int) -> Sequence[Row[int, int]]:
    """Return (priority, number of open comparisons), highest priority first."""
    counted = select(Comparison.priority, func.count()).where(Comparison.project_id == project_id, *ASSIGNABLE)
    return session.execute(counted.group_by(Comparison.priority).order_by(Comparison.priority.desc())).all()


def labelers(session: Session, project_id: int) -> list[User]:
    """Return people who can label in the project now, by name."""
    return list(session.scalars(select(User).where(*may_label(project_id)).order_by(User.name, User.id)))


def groups(session: Session, project_id: int) -> Sequence[Row[LabelerGroup, int]]:
    """Return (group, number of members who can label now), by name."""
    members = (
        select(func.count())
        .select_from(LabelerGroupMember)
        .join(User, User.id == LabelerGroupMember.labeler_id)
        .where(LabelerGroupMember.group_id == LabelerGroup.id, *may_label(project_id))
        .scalar_subquery()
    )
    found = select(LabelerGroup, members).where(LabelerGroup.project_id == project_id)
    return session.execute(found.order_by(LabelerGroup.name)).all()


def members(session: Session, project_id: int, group_id: int) -> list[int]:
    """Return ids of the group's members who can label now."""
    of_group = select(User.id).join(LabelerGroupMember, LabelerGroupMember.labeler_id == User.id)
    return list(session.scalars(of_group.where(LabelerGroupMember.group_id == group_id, *may_label(project_id))))


class Chosen(NamedTuple):
    """A selection of open comparisons in a project; see `AssignForm`."""

    held: str
    purpose: str
    slice: str
    value: str
    ids: list[int] | None
    most: int | None


class Found(NamedTuple):
    """Locked comparisons to assign.

    Attributes:
        ids: in queue order; the other pairs of their rankings are locked too.
        on_desks: how many more comparisons match but are on somebody's desk.
    """

    ids: list[int]
    on_desks: int = 0


def choose(session: Session, project_id: int, chosen: Chosen, people: Sequence[int] = ()) -> Found:
    """Select and lock the comparisons, without rows that another transaction is changing.

    Args:
        people: the labelers they will be kept for. Comparisons that none of them can answer any more are left out. So
            are comparisons on a desk, because the labeler there would take one of their places.
    """
    fitting = [Comparison.project_id == project_id, *ASSIGNABLE]
    kept = or_(Comparison.labeler_id.is_not(None), Comparison.group_id.is_not(None))
    if chosen.held:
        fitting.append({"kept": kept, "everybody": ~kept, "stuck": STUCK}[chosen.held])
    if chosen.purpose:
        fitting.append(Comparison.purpose == chosen.purpose)
    if chosen.slice:
        of_slice = Prompt.id == Comparison.prompt_id, getattr(Prompt, chosen.slice) == chosen.value
        fitting.append(exists().where(*of_slice))
    if chosen.ids is not None:
        fitting.append(among(Comparison.id, chosen.ids))
    if not people:
        every = select(Comparison.id).where(*fitting).order_by(*QUEUE_ORDER).limit(chosen.most)
        return Found(_whole(session, session.scalars(every.with_for_update(skip_locked=True, key_share=True)).all()))
    on_desk = select(func.count()).select_from(Comparison).where(*fitting, Comparison.lease_count > 0)
    on_desks = session.scalar(on_desk.where(is_left_of(people))) or 0
    free = Comparison.lease_count == 0
    # Sorted first, so the lookup of who can answer stops once enough are found.
    fence = select(Comparison.id, Comparison.priority).where(*fitting, free).order_by(*QUEUE_ORDER).offset(0).subquery()
    wanted = select(fence.c.id).where(is_left_of(people, fence.c.id)).order_by(fence.c.priority.desc(), fence.c.id)
    ids = session.scalars(wanted.limit(chosen.most)).all()
    locked = select(Comparison.id).where(among(Comparison.id, ids), free, *ASSIGNABLE)
    locked = locked.order_by(*QUEUE_ORDER).with_for_update(skip_locked=True, key_share=True)
    return Found(_whole(session, session.scalars(locked).all()), on_desks)


def _whole(session: Session, ids: Sequence[int]) -> list[int]:
    """Lock the other pairs of the rankings among these. Leave out a ranking if somebody is changing one of its pairs.

    Waiting for that pair would be a deadlock if the other person next needs a comparison that is locked here.
    """
    offered = aliased(Comparison)
    of_rankings = select(offered.id, Comparison.id).join(offered, offered.ranking_id == Comparison.ranking_id)
    pairs = session.execute(of_rankings.where(among(offered.id, ids), ~Comparison.offered)).all()
    if not pairs:
        return list(ids)
    others = select(Comparison.id).where(among(Comparison.id, [pair for _, pair in pairs])).order_by(Comparison.id)
    locked = set(session.scalars(others.with_for_update(skip_locked=True, key_share=True)))
    torn = {id_ for id_, pair in pairs if pair not in locked}
    return [id_ for id_ in ids if id_ not in torn]


def let_pairs_follow(session: Session, ids: Sequence[int]) -> None:
    """Copy the offered pair's assignment to the other pairs of its ranking, because one answer covers them all."""
    offered = aliased(Comparison)
    names = ("labeler_id", "group_id", "overlap", "overlap_max", "grown", "priority")
    changed = update(Comparison).where(Comparison.ranking_id == offered.ranking_id, ~Comparison.offered)
    changed = changed.where(among(offered.id, ids))
    values = {name: getattr(offered, name) for name in names}
    session.execute(changed.values(values), execution_options={"synchronize_session": False})


def set_priority(session: Session, ids: Sequence[int], priority: int) -> None:
    changed = update(Comparison).where(among(Comparison.id, ids))
    session.execute(changed.values(priority=priority), execution_options={"synchronize_session": False})


def keep_for_labeler(session: Session, ids: Sequence[int], labeler_id: int) -> None:
    """Keep comparisons for one labeler. Each then asks for exactly one more judgment: this labeler's."""
    done = Comparison.judgment_count
    changed = (
        update(Comparison)
        .where(among(Comparison.id, ids))
        .values(
            labeler_id=labeler_id,
            group_id=None,
            overlap=done + 1,
            overlap_max=None,
            grown=func.least(Comparison.grown, done),
        )
    )
    session.execute(changed, execution_options={"synchronize_session": False})


def keep_for_group(
    session: Session, project: Project, ids: Sequence[int], group_id: int | None, members: Sequence[int]
) -> None:
    """Keep comparisons for a group with these members, or open them to everybody (group None).

    Each asks for as many judgments as a new comparison, but from a group at most one from each member who can still
    answer. A comparison that already has that many asks for one more.
    """
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
        asked = func.least(asked, begun + left_of(members))
    overlap = func.greatest(asked, begun + 1)
    most: Any = null()
    if adaptive and group_id is None:
        cap = func.greatest(literal(adaptive.at_most, BigInteger), overlap)
        most = case(*[(condition, null()) for condition, _ in rules], else_=cap) if rules else cap
    changed = (
        update(Comparison)
        .where(among(Comparison.id, ids))
        .values(labeler_id=None, group_id=group_id, overlap=overlap, overlap_max=most, grown=0)
    )
    session.execute(changed, execution_options={"synchronize_session": False})
