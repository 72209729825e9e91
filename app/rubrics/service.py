"""Rubrics: the draft that admins edit, and the versions that labelers judge by."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import func
from sqlalchemy.orm import Session

from app.access import gate_queries
from app.audit import audit
from app.documents import RubricContent
from app.errors import Conflict, NotFound
from app.models import Project, Rubric, User
from app.rubrics import queries, retaking
from app.rubrics.retaking import Retake


def create_first(session: Session, project: Project, content: RubricContent, actor_id: int | None = None) -> Rubric:
    """Publish version 1 of a project that has none yet."""
    rubric = Rubric(
        project_id=project.id,
        version=1,
        created_by=actor_id,
        edited_by=actor_id,
        published_by=actor_id,
        published_at=func.now(),
        **_columns(content),
    )
    session.add(rubric)
    session.flush()
    return rubric


def _columns(content: RubricContent) -> dict[str, Any]:
    return content.model_dump(mode="json")


def current(session: Session, project: Project) -> Rubric:
    """Return the newest published version, by which new comparisons are judged.

    Raises:
        NotFound: nothing has been published.
    """
    rubric = gate_queries.newest_rubric(session, project.id)
    if rubric is None:
        raise NotFound("This project has no published rubric yet.", "An admin can publish a rubric on the rubric page.")
    return rubric


def published(session: Session, project: Project, version: int) -> Rubric:
    """Return a published version.

    Raises:
        NotFound: there is no such version.
    """
    rubric = queries.published(session, project.id, version)
    if rubric is None:
        raise NotFound(f"This project's rubric has no version {version}.", "The rubric page lists all versions.")
    return rubric


def draft(session: Session, project: Project) -> Rubric:
    """Return the draft.

    Raises:
        NotFound: nobody has begun one.
    """
    rubric = queries.draft(session, project.id)
    if rubric is None:
        raise NotFound("This project's rubric has no draft.", "Save a change on the rubric page to start a draft.")
    return rubric


def save_draft(session: Session, project: Project, columns: dict[str, Any], revision: int, editor: User) -> Rubric:
    """Write the draft, or begin one.

    Args:
        columns: RubricContent's fields as JSON; a draft may be incomplete.
        revision: the revision of the draft that the editor began from; 0 if there was none.

    Raises:
        Conflict: somebody else changed the draft since the editor opened it; says who.
    """
    queries.lock(session, project.id)
    draft = queries.draft(session, project.id)
    if draft is None:
        if revision:
            raise Conflict(
                "The draft that you were editing has been published or discarded by somebody else.",
                "Compare your text with the newest version. If you save again, you start a new draft.",
            )
        draft = Rubric(project_id=project.id, created_by=editor.id, revision=0)
        session.add(draft)
    elif draft.revision != revision:
        raise _edited_meanwhile(session, draft)
    draft.revision += 1
    for column, value in columns.items():
        setattr(draft, column, value)
    draft.edited_by = editor.id
    draft.edited_at = datetime.now(UTC)
    session.flush()
    return draft


def _edited_meanwhile(session: Session, draft: Rubric) -> Conflict:
    return Conflict(
        f"{queries.user_name(session, draft.edited_by)} changed this draft after you opened it.",
        "Nothing was saved. The differences are shown below. If you save again, your draft replaces theirs.",
    )


def discard_draft(session: Session, project: Project, revision: int) -> None:
    """Delete the draft.

    Raises:
        Conflict: somebody else changed it since that revision.
    """
    queries.lock(session, project.id)
    draft = queries.draft(session, project.id)
    if draft is None:
        return
    if draft.revision != revision:
        raise _edited_meanwhile(session, draft)
    session.delete(draft)
    session.flush()


def publish(
    session: Session,
    project: Project,
    content: RubricContent,
    revision: int,
    publisher: User,
    retake: Retake = "changed",
) -> Rubric:
    """Save the draft and publish it as the next version.

    Comparisons that nobody has begun are judged by it from now on (a trigger sets it when they are handed out). Begun
    comparisons keep their version, so that all judgments of a comparison are made under the same one.

    Args:
        retake: whether labelers who passed the quiz of an earlier version have to take this one's.

    Raises:
        Conflict: somebody else changed the draft; or it is the same as the published version.
    """
    queries.lock(session, project.id)
    columns = _columns(content)
    versions = queries.all_published(session, project.id)
    newest = versions[0] if versions else None
    if newest and all(getattr(newest, column) == value for column, value in columns.items()):
        raise Conflict(f"This text is the same as version {newest.version}.", "Change something, or keep that version.")
    draft = save_draft(session, project, columns, revision, publisher)
    draft.version = (newest.version or 0) + 1 if newest else 1
    draft.quiz_of_version = retaking.same_as(draft.quiz, versions, retake)
    draft.published_by = publisher.id
    draft.published_at = datetime.now(UTC)
    session.flush()
    of_quiz = {"quiz_version": draft.quiz_version} if draft.quiz else {}
    audit(session, publisher.id, "rubric.published", project.id, version=draft.version, **of_quiz)
    return draft
