"""Archiving a project, restoring it, and deleting one in which nobody has done anything yet."""

from datetime import UTC, datetime

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.audit import audit
from app.errors import Conflict, InvalidInput
from app.models import Project, User
from app.projects import queries


def archive(session: Session, project: Project, admin: User) -> None:
    """Nothing is asked, trained or changed in the project from now on; everything can still be read. Automatic rounds
    are switched off.

    Raises:
        Conflict: something is running.
    """
    session.refresh(project, with_for_update={"key_share": True})
    if project.archived_at is not None:
        return
    if queries.is_working(session, project.id):
        raise Conflict("Something is still running in this project.", "Cancel it, or wait until it has ended.")
    project.archived_at, project.automatic = datetime.now(UTC), None
    audit(session, admin.id, "project.archived", project.id)


def restore(session: Session, project: Project, admin: User) -> None:
    """Takes the project up again."""
    if project.archived_at is not None:
        project.archived_at = None
        audit(session, admin.id, "project.restored", project.id)


def delete(session: Session, project: Project, admin: User, typed: str) -> None:
    """Removes an archived project that holds no work: no responses, comparisons, answers, imports or models made here.

    Args:
        typed: the project's address, to make sure.

    Raises:
        InvalidInput: something else was typed.
        Conflict: the project is not archived, or holds work.
    """
    if typed.strip() != project.slug:
        raise InvalidInput("That is not the project's address.", f"Type {project.slug} to delete the project.")
    if project.archived_at is None:
        raise Conflict("Only archived projects can be deleted.", "Archive it first.")
    slug, name, project_id = project.slug, project.name, project.id
    try:
        with session.begin_nested():
            queries.delete_empty(session, project_id)
    except IntegrityError as error:  # the foreign keys of what people and rounds made decide
        raise Conflict(
            "This project holds data that people or rounds have made, so it cannot be deleted.",
            "It can stay archived: nobody is asked anything in it.",
        ) from error
    audit(session, admin.id, "project.deleted", slug=slug, name=name, deleted_id=project_id)
