"""Thumbs: people say whether they like a single response. KTO learns from them."""

import hmac

from sqlalchemy.orm import Session

from app.access import gate, gate_queries
from app.documents import LabelingSettings
from app.errors import Forbidden, Gone
from app.models import Project, Thumb, User
from app.thumbs import queries
from app.thumbs.forms import ThumbForm


def asks(project: Project) -> bool:
    """Tell whether the project asks for thumbs."""
    return LabelingSettings.model_validate(project.labeling).thumbs


def order(key: bytes, labeler: User, turn: int) -> int:
    """Return the secret seed of a labeler's order of responses; each turn has another order."""
    drawn = hmac.digest(key, f"thumbs:{labeler.id}:{turn}".encode(), "sha256")
    return int.from_bytes(drawn[:8], signed=True)


def give(session: Session, project: Project, labeler: User, form: ThumbForm) -> Thumb:
    """Store a thumb. The same thumb again changes nothing; a different one on the same response replaces it.

    Raises:
        Forbidden: the project asks for no thumbs, or the labeler may not work in it now.
        Gone: the prompt was withdrawn or held out since, or never had such a response.
    """
    gate_queries.lock_labeler(session, labeler.id)
    if not asks(project):
        raise Forbidden("This project asks for no thumbs.", "An admin can turn thumbs on in the project's settings.")
    gate.require(session, project, labeler)
    response = queries.response(session, project.id, form.prompt_id, form.digest)
    if response is None:
        raise Gone("This response no longer needs a thumb.", "Your thumb was not saved. Go on with the next response.")
    rationale = form.rationale.strip()
    before = queries.live(session, response.id, labeler.id)
    if before is not None:
        if (before.liked, before.rationale) == (form.liked, rationale):
            return before
        queries.supersede(session, before.id)
    thumb = Thumb(
        project_id=project.id,
        completion_id=response.id,
        labeler_id=labeler.id,
        liked=form.liked,
        rationale=rationale,
        duration_ms=form.duration_ms,
    )
    session.add(thumb)
    session.flush()
    return thumb
