"""The audit trail, which every feature writes to."""

from sqlalchemy.orm import Session

from app.models import AuditEvent


def audit(
    session: Session, actor_id: int | None, action: str, project_id: int | None = None, **details: object
) -> None:
    """Record who did what; `details` must be JSON."""
    session.add(AuditEvent(actor_id=actor_id, action=action, project_id=project_id, details=details))
