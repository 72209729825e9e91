"""Imports of files: the rows that each import added, so that it can be undone."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, Id, Json, Now


class DataImport(Base):
    """One import, of one or more files. The arrays hold the ids of the rows it added."""

    __tablename__ = "data_import"
    __table_args__ = (
        Index("ix_data_import_project", "project_id", "id"),
        CheckConstraint("undone_at IS NOT NULL OR undone_by IS NULL", name="undone_when"),
    )

    id: Mapped[Id]
    project_id: Mapped[int] = mapped_column(ForeignKey("project.id"))
    actor_id: Mapped[int | None] = mapped_column(ForeignKey("user_account.id"))  # None: from the command line
    files: Mapped[list[Any]]  # their names
    added: Mapped[Json]  # counts of added rows by kind
    prompts: Mapped[list[int]] = mapped_column(ARRAY(BigInteger))
    comparisons: Mapped[list[int]] = mapped_column(ARRAY(BigInteger))
    judgments: Mapped[list[int]] = mapped_column(ARRAY(BigInteger))
    demonstrations: Mapped[list[int]] = mapped_column(ARRAY(BigInteger))
    thumbs: Mapped[list[int]] = mapped_column(ARRAY(BigInteger))
    # For each comparison that existed before and got judgments: its overlap before the import, by id.
    overlaps: Mapped[Json] = mapped_column(server_default="{}")
    created_at: Mapped[Now]
    undone_at: Mapped[datetime | None]
    undone_by: Mapped[int | None] = mapped_column(ForeignKey("user_account.id"))
