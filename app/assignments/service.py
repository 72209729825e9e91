"""Named assignment: keep comparisons for a person or a group, open them to everybody, or change their priority."""

from typing import NamedTuple

from sqlalchemy.orm import Session

from app.access import gate_queries
from app.assignments import queries
from app.assignments.forms import AssignForm
from app.assignments.queries import Chosen
from app.audit import audit
from app.errors import InvalidInput, NotFound
from app.models import Project, User


class Assigned(NamedTuple):
    """changed: comparisons changed. on_desks: comparisons left unchanged because somebody has them on the desk."""

    changed: int
    on_desks: int


def assign(session: Session, project: Project, actor: User, form: AssignForm) -> Assigned:
    """Change whom open comparisons are kept for, or their priority.

    Skips comparisons that the person, or everybody in the group, has judged or given up, and rows that another
    transaction is changing. When keeping comparisons for somebody, it also skips those on somebody's desk.

    Raises:
        InvalidInput: nothing is to change, a slice has no value, or the numbers cannot be read.
        NotFound: there is no such labeler or group here.
    """
    if not form.owner and form.priority is None:
        raise InvalidInput("You chose no change.", "Choose whom to reserve the comparisons for, or a priority.")
    if form.slice and not form.value:
        raise InvalidInput("The slice has no value.", "Enter a value, for example “law” for the slice “domain”.")
    kind, _, number = form.owner.partition(":")
    people = []
    if kind == "labeler":
        people = [_labeler(session, project, int(number))]
    elif kind == "group":
        people = _members(session, project, int(number))
    chosen = Chosen(form.held, form.purpose, form.slice, form.value, form.numbers(), form.most)
    ids, on_desks = queries.choose(session, project.id, chosen, people)
    if not ids:
        return Assigned(0, on_desks)
    if kind == "labeler":
        queries.keep_for_labeler(session, ids, people[0])
    elif kind:
        queries.keep_for_group(session, project, ids, int(number) if kind == "group" else None, people)
    if form.priority is not None:
        queries.set_priority(session, ids, form.priority)
    queries.let_pairs_follow(session, ids)
    said = form.model_dump(exclude={"ids"})
    audit(session, actor.id, "comparisons.assigned", project.id, comparisons=len(ids), **said)
    return Assigned(len(ids), on_desks)


def _labeler(session: Session, project: Project, labeler_id: int) -> int:
    # so that nothing is kept for a labeler who is being removed right now
    gate_queries.lock_labeler(session, labeler_id)
    if labeler_id not in {user.id for user in queries.labelers(session, project.id)}:
        raise NotFound("That person cannot label in this project.", "Reload the page and choose again.")
    return labeler_id


def _members(session: Session, project: Project, group_id: int) -> list[int]:
    """Return the group's members who can label."""
    name = next((group.name for group, _ in queries.groups(session, project.id) if group.id == group_id), None)
    if name is None:
        raise NotFound("This project has no such group.", "Reload the page: somebody may have deleted it.")
    members = queries.members(session, project.id, group_id)
    if not members:
        raise InvalidInput(
            f"Nobody in the group “{name}” can label now.", "Add members on the Labelers page, under Groups."
        )
    return members
