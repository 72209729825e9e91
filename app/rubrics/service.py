"""Rubrics: the version in force, and the first one of a project."""

from datetime import UTC, datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.models import Project, Rubric


def current(session: Session, project: Project) -> Rubric:
    """The newest published version. Every project has one: `create_first` runs when it is made."""
    published = select(Rubric).where(Rubric.project_id == project.id, Rubric.version.is_not(None))
    return session.scalars(published.order_by(Rubric.version.desc()).limit(1)).one()


def create_first(session: Session, project: Project, guideline: str, actor_id: int | None) -> Rubric:
    """Publishes version 1."""
    rubric = Rubric(
        project_id=project.id,
        version=1,
        guideline=guideline,
        created_by=actor_id,
        published_by=actor_id,
        published_at=datetime.now(UTC),
    )
    session.add(rubric)
    session.flush()
    return rubric
