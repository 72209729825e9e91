"""Labelers of a project: figures, pauses, groups, and removal. Decisions are audited."""

from collections.abc import Sequence
from datetime import UTC, datetime, time
from typing import NamedTuple

import numpy as np
from sqlalchemy import func
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.access import gate_queries
from app.audit import audit
from app.db import violates
from app.documents import OwnFigures
from app.domain.labelers import Figures, figures
from app.errors import Conflict, InvalidInput, NotFound
from app.labelers import fitting, group_queries, queries, removal_queries, uses_queries
from app.labelers.fitting import Fitted
from app.labelers.queries import Labeler
from app.labelers.removal_queries import Affected, Written
from app.labelers.uses_queries import Made, UsedIn
from app.models import LabelerGroup, Project, ProjectLabeler, User

OWN_JUDGMENTS = 500  # a labeler's own figures cover this many of their latest judgments


class Overview(NamedTuple):
    """All labelers of a project with their figures.

    Attributes:
        labelers: everybody who has judged or written, has a standing or is in a group.
        row_of: each labeler's index in `figures`, by id. Labelers without a judgment are missing.
        consistency: by labeler id, the number of hidden repeats answered as the first time, and of all answered
            repeats.
        fitted: the last fit, if any.
    """

    labelers: list[Labeler]
    figures: Figures
    row_of: dict[int, int]
    consistency: dict[int, tuple[int, int]]
    fitted: Fitted | None


class OwnNumbers(NamedTuple):
    """Figures labelers see about themselves; None if the project does not show the figure or there is no data yet.

    seconds: the median. agreement: (share on the side that most others chose, number of judgments). calibration: the
    same for known answers. These three cover the last `OWN_JUDGMENTS` up to a moment, see `own_figures`.
    """

    today: int
    total: int
    seconds: float | None = None
    agreement: tuple[float, int] | None = None
    calibration: tuple[float, int] | None = None


class Uses(NamedTuple):
    """What a labeler's work was used for: snapshots, models trained on it, and later models based on these models."""

    snapshots: list[UsedIn]
    trained: list[Made]
    descended: list[Made]


# ---- figures ---------------------------------------------------------------------------------------------------------


def overview(session: Session, project: Project) -> Overview:
    read = queries.judged(session, project.id)
    ids = [int(id_) for id_ in read.labeler_ids]
    return Overview(
        labelers=queries.labelers(session, project.id, ids),
        figures=figures(read.judged, len(ids)),
        row_of={id_: i for i, id_ in enumerate(ids)},
        consistency=queries.consistency(session, project.id),
        fitted=fitting.last_fit(project),
    )


def changed_at(session: Session, project: Project, user: User) -> datetime | None:
    """See `app.labelers.queries.changed_at`."""
    return queries.changed_at(session, project, user.id)


def find(session: Session, project: Project, labeler_id: int) -> Labeler:
    """Return the labeler; raise NotFound for somebody who has nothing to do with the project."""
    found = queries.labeler(session, project.id, labeler_id) if labeler_id < 2**63 else None
    if found is None:
        raise NotFound("This project has no labeler with that number.", "The Labelers page lists everybody who does.")
    return found


def done(session: Session, project: Project, labeler: User) -> OwnNumbers:
    """Return how much a labeler has answered in a project, without anything about other labelers' answers."""
    midnight = datetime.combine(datetime.now(UTC).date(), time(), UTC)
    return OwnNumbers(*queries.done_since(session, project.id, labeler.id, midnight))


def own_figures(session: Session, project: Project, labeler: User, wanted: OwnFigures, until: datetime) -> OwnNumbers:
    """Return a labeler's own figures, those that the project shows; costs O(their judgments).

    Args:
        until: the figures cover only answers given before this moment. If they changed with each answer, labelers could
            infer how others answered, and which answer was to a calibration item or a repeat.
    """
    numbers = done(session, project, labeler)
    if not any(shown for _, shown in wanted) or not (own := _figures_of(session, project, labeler, until)):
        return numbers
    if wanted.seconds and not np.isnan(own.median_ms):
        numbers = numbers._replace(seconds=own.median_ms / 1000)
    if wanted.agreement and own.compared:
        numbers = numbers._replace(agreement=(own.agreed / own.compared, max(round(own.compared), 1)))
    if wanted.calibration and own.measured:
        numbers = numbers._replace(calibration=(own.right / own.measured, round(own.measured)))
    return numbers


class _Own(NamedTuple):
    """The columns of `Figures` that labelers may see about themselves."""

    median_ms: float
    agreed: float
    compared: float
    right: float
    measured: float


def _figures_of(session: Session, project: Project, labeler: User, until: datetime) -> _Own | None:
    read = queries.judged(session, project.id, of_labeler=labeler.id, limit=OWN_JUDGMENTS, until=until)
    i = read.index_of(labeler.id)
    if i is None:
        return None
    found = figures(read.judged, len(read.labeler_ids))
    return _Own(*(float(getattr(found, name)[i]) for name in _Own._fields))


def refit(session: Session, project: Project) -> Fitted:
    """See `app.labelers.fitting.refit`."""
    return fitting.refit(session, project)


def uses(session: Session, project: Project, labeler_id: int) -> Uses:
    snapshots = uses_queries.snapshots_with(session, project.id, labeler_id)
    rounds = {used.round_id for used in snapshots if used.round_id is not None}
    trained: list[Made] = []
    descended: list[Made] = []
    tainted: set[int | None] = set()
    # Oldest first: parents come before their children.
    for made in uses_queries.models(session, project.id, labeler_id):
        if made.round_id in rounds or made.sampled:
            trained.append(made)
        elif tainted.intersection((made.parent_id, *made.began_with)):
            descended.append(made)
        else:
            continue
        tainted.add(made.id)
    return Uses(snapshots, trained, descended)


# ---- decisions -------------------------------------------------------------------------------------------------------


def pause(session: Session, project: Project, admin: User, labeler_id: int, message: str) -> None:
    """Pause a labeler: until an admin lets them continue, they get no tasks and read the message instead.

    Raises:
        InvalidInput: no message. Conflict: they were removed. NotFound: they have nothing to do with the project.
    """
    message = message.strip()
    if not message:
        raise InvalidInput("The message is empty.", "Tell the labeler why they are paused and what to do next.")
    row = _locked(session, project, labeler_id)
    if row.state == "removed":
        raise Conflict("This labeler was removed from the project.", "There is nobody to pause.")
    _change(session, row, admin, "paused", message)
    audit(session, admin.id, "labeler.paused", project.id, labeler_id=labeler_id, because="admin", message=message)


def resume(session: Session, project: Project, admin: User, labeler_id: int) -> None:
    """Let a paused or removed labeler work again.

    Calibration counts only answers from now on. Judgments that a removal took out stay out.

    Raises:
        Conflict: the labeler is active. NotFound: they have nothing to do with the project.
    """
    row = _locked(session, project, labeler_id)
    if row.state == "active":
        raise Conflict("This labeler is not paused.", "Nothing was changed.")
    before = row.state
    _change(session, row, admin, "active", "")
    row.counted_from = func.now()
    audit(session, admin.id, "labeler.resumed", project.id, labeler_id=labeler_id, from_state=before)
    session.flush()


def removal(session: Session, project: Project, labeler_id: int) -> Affected:
    """Return what `remove` would change."""
    return removal_queries.affected(session, project.id, labeler_id)


def written(session: Session, project: Project, labeler_id: int) -> Written:
    """Count the labeler's demonstrations and attempts that `withdraw_written` would withdraw."""
    return removal_queries.written(session, project.id, labeler_id)


def remove(
    session: Session, project: Project, admin: User, labeler_id: int, reason: str, *, with_written: bool = False
) -> Affected:
    """Remove a labeler and all their judgments, because they withdrew their consent or sent spam.

    Their judgments stay stored as superseded. Comparisons that now lack judgments go back into the queue, and the
    consensus is fitted again without them. Existing snapshots and models do not change: `uses` lists them.

    Args:
        with_written: also withdraw what they wrote, see `withdraw_written`.

    Returns:
        what was changed.

    Raises:
        InvalidInput: no reason. Conflict: they were removed already. NotFound: as `pause`.
    """
    reason = reason.strip()
    if not reason:
        raise InvalidInput("The reason is empty.", "Say why: consent withdrawn, spam, ...")
    row = _locked(session, project, labeler_id, to_fit=True)
    if row.state == "removed":
        raise Conflict("This labeler was removed already.", "Nothing was changed.")
    if with_written:
        _withdraw(session, project, admin, labeler_id, reason)
    before = removal_queries.affected(session, project.id, labeler_id)
    used = uses(session, project, labeler_id)
    comparisons = removal_queries.take_out(session, project.id, labeler_id)
    reopened = removal_queries.reopen(session, comparisons)
    removal_queries.release_kept(session, project.id, labeler_id)
    removal_queries.withdraw_repeats(session, project.id, labeler_id)
    group_queries.leave_groups(session, project.id, labeler_id)
    _change(session, row, admin, "removed", reason)
    done = before._replace(judgments=len(comparisons), comparisons=len(comparisons), reopened=reopened)
    audit(
        session,
        admin.id,
        "labeler.removed",
        project.id,
        labeler_id=labeler_id,
        reason=reason,
        judgments=done.judgments,
        reopened=done.reopened,
        thumbs=done.thumbs,
        **_named(used),
    )
    fitting.refit(session, project)
    return done


def leave(session: Session, project: Project, labeler_id: int) -> None:
    """Release what somebody holds who is no longer a labeler of the project.

    Their tasks go back to the queue, comparisons kept for them are opened to everybody, and they leave their groups.
    Their judgments and their texts stay. So do their repeats: if they come back, the card that they held is there
    again, whatever it was.
    """
    gate_queries.lock_labeler(session, labeler_id)
    removal_queries.give_back(session, project.id, labeler_id)
    removal_queries.release_kept(session, project.id, labeler_id)
    group_queries.leave_groups(session, project.id, labeler_id)


def withdraw_written(session: Session, project: Project, admin: User, labeler_id: int, reason: str) -> None:
    """Withdraw a labeler's demonstrations and red-team attempts, and the prompts made from these attempts.

    Nothing reads withdrawn texts any more. They stay stored, and existing snapshots and models do not change.

    Raises:
        InvalidInput: no reason. Conflict: they have nothing left to withdraw. NotFound: as `pause`.
    """
    reason = reason.strip()
    if not reason:
        raise InvalidInput("The reason is empty.", "Say why: consent withdrawn, spam, ...")
    _locked(session, project, labeler_id, to_fit=True)
    if not any(written(session, project, labeler_id)):
        raise Conflict("Nothing written by this labeler still counts.", "Nothing was changed.")
    _withdraw(session, project, admin, labeler_id, reason)
    fitting.refit(session, project)


def _withdraw(session: Session, project: Project, admin: User, labeler_id: int, reason: str) -> None:
    counts, used = written(session, project, labeler_id), uses(session, project, labeler_id)
    removal_queries.withdraw_written(session, project.id, labeler_id, admin.id, reason)
    details = {"labeler_id": labeler_id, "reason": reason} | counts._asdict() | _named(used)
    audit(session, admin.id, "labeler.written_withdrawn", project.id, **details)


def _named(used: Uses) -> dict[str, list[int]]:
    return {
        "snapshots": sorted({snapshot.snapshot_id for snapshot in used.snapshots}),
        "models": [model.id for model in (*used.trained, *used.descended)],
    }


def _locked(session: Session, project: Project, labeler_id: int, *, to_fit: bool = False) -> ProjectLabeler:
    """Return the labeler's row in the project, locked.

    Locks are taken in this order: the labeler, the project if it will be fitted, the row, and then comparisons. No fit
    or answer holds a later lock while it waits for an earlier one.
    """
    if labeler_id >= 2**63 or not gate_queries.lock_labeler(session, labeler_id):
        raise NotFound("This project has no labeler with that number.", "The Labelers page lists everybody who does.")
    if to_fit:
        fitting.lock(session, project)
    return queries.lock_standing(session, project.id, labeler_id)


def _change(session: Session, row: ProjectLabeler, admin: User, state: str, reason: str) -> None:
    row.state, row.reason, row.changed_by, row.changed_at = state, reason, admin.id, datetime.now(UTC)
    session.flush()


# ---- groups ----------------------------------------------------------------------------------------------------------


def add_group(session: Session, project: Project, admin: User, name: str) -> LabelerGroup:
    """Add a group. Raise InvalidInput for an empty name, Conflict for a name that the project already has."""
    name = name.strip()
    if not name:
        raise InvalidInput("The name is empty.", "Name the group by what its members know: “law”, “Arabic”.")
    group = LabelerGroup(project_id=project.id, name=name)
    try:
        with session.begin_nested():
            session.add(group)
            session.flush()
    except IntegrityError as error:
        if not violates(error, "uq_labeler_group_project_id_name"):
            raise
        raise Conflict(f"There is already a group “{name}”.", "Choose another name.") from error
    audit(session, admin.id, "group.added", project.id, group_id=group.id, name=name)
    return group


def delete_group(session: Session, project: Project, admin: User, group_id: int) -> None:
    """Delete a group. Raise Conflict while comparisons are kept for it, NotFound if it does not exist."""
    group = _group(session, project, group_id)
    if group_queries.is_kept_for(session, group.id):
        raise Conflict(
            f"Comparisons are reserved for the group “{group.name}”.",
            "Remove its members instead, or reserve the comparisons for somebody else.",
        )
    audit(session, admin.id, "group.deleted", project.id, group_id=group.id, name=group.name)
    session.delete(group)
    session.flush()


def add_members(session: Session, project: Project, admin: User, group_id: int, labeler_ids: Sequence[int]) -> None:
    """Add labelers to a group. Raise NotFound if the group or a labeler does not exist."""
    group = _group(session, project, group_id)
    for labeler_id in sorted({each for each in labeler_ids if each < 2**63}):
        gate_queries.lock_labeler(session, labeler_id)  # a labeler who is just being removed must leave this group too
    known = {user.id for user in group_queries.active_labelers(session, project.id)}
    if not labeler_ids:
        raise InvalidInput("Nobody was chosen.", "Choose people to add to the group.")
    if not known >= set(labeler_ids):
        raise NotFound("Somebody chosen cannot label any more.", "Reload the page and choose again.")
    for labeler_id in labeler_ids:
        group_queries.add_member(session, group.id, labeler_id)
    audit(session, admin.id, "group.joined", project.id, group_id=group.id, labeler_ids=list(labeler_ids))


def remove_member(session: Session, project: Project, admin: User, group_id: int, labeler_id: int) -> None:
    """Remove a labeler from a group. Raise NotFound if the group does not exist."""
    group = _group(session, project, group_id)
    group_queries.remove_member(session, group.id, labeler_id)
    audit(session, admin.id, "group.left", project.id, group_id=group.id, labeler_ids=[labeler_id])


def _group(session: Session, project: Project, group_id: int) -> LabelerGroup:
    group = group_queries.group(session, project.id, group_id) if group_id < 2**63 else None
    if group is None:
        raise NotFound("This project has no such group.", "Reload the page: somebody may have deleted it.")
    return group
