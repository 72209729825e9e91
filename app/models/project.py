"""A project: one policy, one series of rubric versions, one queue."""

from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, Id, Json, Now


class Project(Base):
    __tablename__ = "project"
    __table_args__ = (
        CheckConstraint("overlap BETWEEN 1 AND 100", name="overlap_range"),
        CheckConstraint("review_threshold BETWEEN 0 AND 1", name="review_threshold_range"),
        CheckConstraint("slug ~ '^[a-z0-9]+(-[a-z0-9]+)*$'", name="slug_form"),
    )

    id: Mapped[Id]
    slug: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str]
    description: Mapped[str] = mapped_column(server_default="")
    # How many labelers judge each new comparison.
    overlap: Mapped[int] = mapped_column(server_default="2")
    lease_minutes: Mapped[int] = mapped_column(server_default="15")
    # A comparison whose share of agreeing pairs of judgments is below this goes to review.
    review_threshold: Mapped[float] = mapped_column(server_default="0.6")
    # app.documents.LabelingSettings as JSON: overlap by slice and purpose, adaptive overlap, calibration,
    # repeats, quiz, which pairs to ask, consensus method, what labelers see of their own figures.
    labeling: Mapped[Json] = mapped_column(server_default="{}")
    # app.labelers.fitting.Fitted as JSON: the last fit over all judgments; empty if there is none yet.
    fitted: Mapped[Json] = mapped_column(server_default="{}")
    # app.specs.Generation as JSON: how responses are sampled for the queue.
    generation: Mapped[Json] = mapped_column(server_default="{}")
    # app.automatic.service.Rule as JSON: when rounds start automatically; None: they do not.
    automatic: Mapped[Json | None]
    # The base model; the reference model, which policies are kept close to (the newest fine-tuned model, else the
    # base); and the policy that samples now. None in a project that only holds imported judgments.
    base_model_id: Mapped[int | None] = mapped_column(ForeignKey("model_version.id", use_alter=True))
    reference_id: Mapped[int | None] = mapped_column(ForeignKey("model_version.id", use_alter=True))
    policy_id: Mapped[int | None] = mapped_column(ForeignKey("model_version.id", use_alter=True))
    created_at: Mapped[Now]
    archived_at: Mapped[datetime | None]  # nothing is asked, trained or changed in it from then on
