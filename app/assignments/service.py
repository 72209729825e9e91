"""Named assignment: comparisons kept for a person or a group, freed again, or made more urgent."""

from sqlalchemy.orm import Session

from app.accounts.service import audit
from app.assignments import queries
from app.assignments.forms import AssignForm
from app.assignments.queries import Chosen
from app.errors import InvalidInput, NotFound
from app.models import Project, User


def assign(session: Session, project: Project, actor: User, form: AssignForm) -> int:
    """Changes whom open comparisons are for, or how urgent they are; returns how many.

    Left out are those that the person has judged or given up, and those that somebody else is changing this moment.

    Raises:
        InvalidInput: nothing is to change, a slice has no value, or the numbers cannot be read.
        NotFound: there is no such labeler or group here.
    """
    if not form.owner and form.priority is None:
        raise InvalidInput("Nothing was chosen to be changed.", "Choose whom the comparisons are for, or a priority.")
    if form.slice and not form.value:
        raise InvalidInput("The slice has no value.", "Write for instance “law” beside “domain”.")
    kind, _, number = form.owner.partition(":")
    labeler_id = _labeler(session, project, int(number)) if kind == "labeler" else None
    members = _members(session, project, int(number)) if kind == "group" else 0
    chosen = Chosen(form.held, form.purpose, form.slice, form.value, form.numbers(), form.most)
    ids = queries.choose(session, project.id, chosen, labeler_id)
    if not ids:
        return 0
    if labeler_id is not None:
        queries.keep_for_labeler(session, ids, labeler_id)
    elif kind:
        queries.keep_for_group(session, project, ids, int(number) if kind == "group" else None, members)
    if form.priority is not None:
        queries.set_priority(session, ids, form.priority)
    queries.let_pairs_follow(session, ids)
    said = form.model_dump(exclude={"ids"})
    audit(session, actor.id, "comparisons.assigned", project.id, comparisons=len(ids), **said)
    return len(ids)


def _labeler(session: Session, project: Project, labeler_id: int) -> int:
    if labeler_id not in {user.id for user in queries.labelers(session, project.id)}:
        raise NotFound("That person cannot label in this project.", "Reload the page and choose again.")
    return labeler_id


def _members(session: Session, project: Project, group_id: int) -> int:
    for group, members in queries.groups(session, project.id):
        if group.id == group_id:
            if not members:
                raise InvalidInput(f"The group “{group.name}” has no members.", "Add some on the page of the labelers.")
            return members
    raise NotFound("This project has no such group.", "Reload the page: somebody may have deleted it.")
