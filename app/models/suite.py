"""Suites: fixed evaluations that every new policy and its predecessor take, and their results."""

from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey, Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, Id, Json, Now, one_of

SUITE_SOURCES = ("file", "starter", "red_team")


class Suite(Base):
    """A named set of cases. Every round that begins to evaluate runs its newest version, until the suite is retired.

    If `largest_loss` is set, a policy that loses more than that against its predecessor is not adopted automatically;
    `bound` says which end of the interval decides (app.domain.suites).
    """

    __tablename__ = "suite"
    __table_args__ = (
        UniqueConstraint("project_id", "name"),
        one_of("source", SUITE_SOURCES),
        one_of("bound", ("high", "low")),
        CheckConstraint("largest_loss BETWEEN 0 AND 1", name="largest_loss_range"),
    )

    id: Mapped[Id]
    project_id: Mapped[int] = mapped_column(ForeignKey("project.id"))
    name: Mapped[str]
    source: Mapped[str]
    largest_loss: Mapped[float | None]
    bound: Mapped[str] = mapped_column(server_default="high")
    retired_at: Mapped[datetime | None]
    created_by: Mapped[int | None] = mapped_column(ForeignKey("user_account.id"))
    created_at: Mapped[Now]


class SuiteVersion(Base):
    """The cases of a suite, stored in a content-hashed file. Neither changes: other cases make another version."""

    __tablename__ = "suite_version"
    __table_args__ = (
        UniqueConstraint("suite_id", "number"),
        CheckConstraint("cases > 0", name="has_cases"),
    )

    id: Mapped[Id]
    suite_id: Mapped[int] = mapped_column(ForeignKey("suite.id"))
    number: Mapped[int]
    digest: Mapped[str]  # SHA-256 of the file's lines
    location: Mapped[str]  # in the artifact store; app.domain.cases describes the lines
    cases: Mapped[int]
    counts: Mapped[Json]  # cases by check
    created_by: Mapped[int | None] = mapped_column(ForeignKey("user_account.id"))
    created_at: Mapped[Now]


class SuiteResult(Base):
    """How many cases of a version a run's new policy and its predecessor passed. `slice` is '' for all cases.

    Both policies' answers to each case are in the run's artifact: app.suites.service.answers_of.
    """

    __tablename__ = "suite_result"
    __table_args__ = (
        CheckConstraint(
            "cases > 0 AND gained >= 0 AND lost >= 0 AND passed - gained = before - lost"
            " AND passed >= gained AND passed + lost <= cases",
            name="adds_up",
        ),
        Index("ix_suite_result_version", "version_id"),
    )

    run_id: Mapped[int] = mapped_column(ForeignKey("run.id"), primary_key=True)
    version_id: Mapped[int] = mapped_column(ForeignKey("suite_version.id"), primary_key=True)
    slice: Mapped[str] = mapped_column(primary_key=True, server_default="")
    cases: Mapped[int]
    passed: Mapped[int]
    before: Mapped[int]
    gained: Mapped[int]
    lost: Mapped[int]
