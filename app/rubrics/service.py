"""Rubrics: the draft that admins edit, and the versions that labelers judge by."""

from datetime import UTC, datetime

from sqlalchemy import func
from sqlalchemy.orm import Session

from app.accounts.service import audit
from app.errors import Conflict, InvalidInput, NotFound
from app.labeling import assigning
from app.models import Project, Rubric, User
from app.rubrics import queries
from app.rubrics.forms import RubricForm

CONTENT = ("guideline", "strengths", "allow_tie", "rationale_rule")


def create_first(
    session: Session,
    project: Project,
    guideline: str,
    actor_id: int | None = None,
    *,
    strengths: int = 3,
    allow_tie: bool = True,
    rationale_rule: str = "optional",
) -> Rubric:
    """Publishes version 1 of a project that has none yet.

    Raises:
        InvalidInput: the guideline is empty.
    """
    rubric = Rubric(
        project_id=project.id,
        version=1,
        guideline=_not_empty(guideline),
        strengths=strengths,
        allow_tie=allow_tie,
        rationale_rule=rationale_rule,
        created_by=actor_id,
        edited_by=actor_id,
        published_by=actor_id,
        published_at=func.now(),
    )
    session.add(rubric)
    session.flush()
    return rubric


def current(session: Session, project: Project) -> Rubric:
    """The newest published version, by which new comparisons are judged.

    Raises:
        NotFound: nothing has been published.
    """
    rubric = queries.newest_published(session, project.id)
    if rubric is None:
        raise NotFound("This project has no published rubric yet.", "An admin can publish one on its rubric page.")
    return rubric


def published(session: Session, project: Project, version: int) -> Rubric:
    """That version.

    Raises:
        NotFound: there is no such version.
    """
    rubric = queries.published(session, project.id, version)
    if rubric is None:
        raise NotFound(f"This project's rubric has no version {version}.", "Its page lists all versions.")
    return rubric


def save_draft(session: Session, project: Project, form: RubricForm, editor: User) -> Rubric:
    """Writes the draft, or begins one.

    Raises:
        Conflict: somebody else changed the draft since the editor opened it; says who.
        InvalidInput: the guideline is empty.
    """
    queries.lock(session, project.id)
    guideline = _not_empty(form.guideline)
    draft = queries.draft(session, project.id)
    if draft is None:
        if form.revision:
            raise Conflict(
                "The draft that you were editing has been published or discarded by somebody else.",
                "Compare your text with the newest version; saving it again begins a new draft.",
            )
        draft = Rubric(project_id=project.id, created_by=editor.id, revision=0)
        session.add(draft)
    elif draft.revision != form.revision:
        raise _edited_meanwhile(session, draft)
    draft.revision += 1
    draft.guideline = guideline
    draft.strengths = form.strengths
    draft.allow_tie = form.allow_tie
    draft.rationale_rule = form.rationale_rule
    draft.edited_by = editor.id
    draft.edited_at = datetime.now(UTC)
    session.flush()
    return draft


def _edited_meanwhile(session: Session, draft: Rubric) -> Conflict:
    return Conflict(
        f"{queries.user_name(session, draft.edited_by)} changed this draft after you opened it.",
        "Nothing was saved. Their draft is shown below yours; saving again replaces it with yours.",
    )


def discard_draft(session: Session, project: Project, revision: int) -> None:
    """Throws the draft away.

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


def publish(session: Session, project: Project, form: RubricForm, publisher: User) -> Rubric:
    """Saves the draft and makes it the next version.

    Open comparisons that nobody has begun are judged by it from now on; those begun keep the version they have, so that
    all judgments of a comparison were made under the same one.

    Raises:
        Conflict: somebody else changed the draft; or it says the same as the published version.
        InvalidInput: the guideline is empty.
    """
    queries.lock(session, project.id)
    before = queries.newest_published(session, project.id)
    said = form.model_dump(include=set(CONTENT)) | {"guideline": _not_empty(form.guideline)}
    if before and all(getattr(before, name) == value for name, value in said.items()):
        raise Conflict(f"This says the same as version {before.version}.", "Change something, or keep that version.")
    draft = save_draft(session, project, form, publisher)
    draft.version = (before.version or 0) + 1 if before else 1
    draft.published_by = publisher.id
    draft.published_at = datetime.now(UTC)
    session.flush()
    assigning.expire_leases(session)  # a desk abandoned long ago must not keep its comparison on the old version
    moved = queries.move_open_comparisons(session, project.id, draft.id)
    audit(session, publisher.id, "rubric.published", project.id, version=draft.version, comparisons_moved=moved)
    return draft


def _not_empty(guideline: str) -> str:
    if not guideline.strip():
        raise InvalidInput("The guideline is empty.", "Tell labelers what makes one response better than another.")
    return guideline.strip() + "\n"
