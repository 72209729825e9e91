"""Prompts and their responses."""

from typing import Any

from sqlalchemy import ForeignKey, Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, Id, Json, Now, one_of

SPLITS = ("train", "heldout", "regression", "calibration")
# The split of a prompt whose author was removed. Nothing samples or reads it, and nobody can set this split by hand.
WITHDRAWN = "withdrawn"
DIFFICULTIES = ("easy", "hard", "adversarial")


class Prompt(Base):
    """A conversation that asks for one more assistant turn. Slice tags are columns so that queries can
    group by them."""

    __tablename__ = "prompt"
    __table_args__ = (
        # A project stores the same conversation once, so no prompt can be in two splits.
        UniqueConstraint("project_id", "digest"),
        Index("ix_prompt_project_split", "project_id", "split"),
        one_of("split", (*SPLITS, WITHDRAWN)),
        one_of("difficulty", DIFFICULTIES),
    )

    id: Mapped[Id]
    project_id: Mapped[int] = mapped_column(ForeignKey("project.id"))
    messages: Mapped[list[Any]]  # [{"role": "user", "content": "..."}, ...]; the last one is not the assistant's
    digest: Mapped[str]  # of the messages: app.prompts.service.digest
    split: Mapped[str] = mapped_column(server_default="train")
    domain: Mapped[str] = mapped_column(server_default="")
    difficulty: Mapped[str] = mapped_column(server_default="easy")
    safety_category: Mapped[str | None]
    source: Mapped[str] = mapped_column(server_default="")
    created_at: Mapped[Now]


class Completion(Base):
    """A response, sampled from a model version by a run, or imported (`source` then says from where)."""

    __tablename__ = "completion"
    __table_args__ = (
        # A resumed sampling run cannot store the same sample twice.
        UniqueConstraint("run_id", "prompt_id", "sample_index"),
        Index("ix_completion_prompt_model", "prompt_id", "model_version_id"),
    )

    id: Mapped[Id]
    prompt_id: Mapped[int] = mapped_column(ForeignKey("prompt.id"))
    text: Mapped[str]
    model_version_id: Mapped[int | None] = mapped_column(ForeignKey("model_version.id"), index=True)
    run_id: Mapped[int | None] = mapped_column(ForeignKey("run.id"))
    sample_index: Mapped[int | None]
    source: Mapped[str] = mapped_column(server_default="")
    finish_reason: Mapped[str | None]  # eos | length
    n_tokens: Mapped[int | None]
    seed: Mapped[int | None]
    sampling: Mapped[Json] = mapped_column(server_default="{}")
    # An AI critic's revision of a policy's answer (app.models.constitution), not an answer that a policy gave.
    ai_revised: Mapped[bool] = mapped_column(server_default="false")
    created_at: Mapped[Now]
