"""SQL of automatic rounds."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.models import Project, ProjectMember, Round, User


def projects_with_rule(session: Session) -> list[int]:
    return list(session.scalars(select(Project.id).where(Project.automatic.is_not(None)).order_by(Project.id)))


def newest_training_round(session: Session, project_id: int) -> Round | None:
    """Return the newest round that trained on comparisons; supervised fine-tuning does not."""
    trained = Round.project_id == project_id, Round.algorithm != "sft"
    return session.scalars(select(Round).where(*trained).order_by(Round.number.desc()).limit(1)).one_or_none()


def operator(session: Session, project_id: int, user_id: int) -> User | None:
    """Return a user who may start rounds in a project; None if they no longer may."""
    found = select(User).join(ProjectMember, ProjectMember.user_id == User.id)
    is_one = ProjectMember.project_id == project_id, ProjectMember.roles.contains(["operator"]), User.is_active
    return session.scalars(found.where(User.id == user_id, *is_one)).one_or_none()
