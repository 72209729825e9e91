"""Members of a project and their roles."""

from sqlalchemy import CheckConstraint, ForeignKey, Text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, Now

ROLES = ("labeler", "admin", "operator")


def known_roles() -> CheckConstraint:
    """Return a check that a column `roles` holds only ROLES."""
    return CheckConstraint("roles <@ ARRAY['labeler', 'admin', 'operator']", name="roles_known")


class ProjectMember(Base):
    """A person's roles in a project. For people without a row, the project does not exist."""

    __tablename__ = "project_member"
    __table_args__ = (known_roles(), CheckConstraint("cardinality(roles) > 0", name="roles_some"))

    project_id: Mapped[int] = mapped_column(ForeignKey("project.id"), primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("user_account.id"), primary_key=True, index=True)
    roles: Mapped[list[str]] = mapped_column(ARRAY(Text))
    added_by: Mapped[int | None] = mapped_column(
        ForeignKey("user_account.id")
    )  # None: the command line, or the first start
    added_at: Mapped[Now]
