"""Who belongs to a project, and what they may do there."""

from sqlalchemy import CheckConstraint, ForeignKey, Text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, Now

ROLES = ("labeler", "admin", "operator")


def known_roles() -> CheckConstraint:
    """A check that a column `roles` holds nothing but ROLES."""
    return CheckConstraint("roles <@ ARRAY['labeler', 'admin', 'operator']", name="roles_known")


class ProjectMember(Base):
    """A person's roles in a project. Whoever has no row there is told that there is no such project."""

    __tablename__ = "project_member"
    __table_args__ = (known_roles(), CheckConstraint("cardinality(roles) > 0", name="roles_some"))

    project_id: Mapped[int] = mapped_column(ForeignKey("project.id"), primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("user_account.id"), primary_key=True, index=True)
    roles: Mapped[list[str]] = mapped_column(ARRAY(Text))
    added_by: Mapped[int | None] = mapped_column(
        ForeignKey("user_account.id")
    )  # none: the command line, or the first start
    added_at: Mapped[Now]
