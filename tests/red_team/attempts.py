"""Projects with a model to attack, attempts on it, and forms as the pages send them."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.artifacts import ArtifactStore
from app.models import ModelVersion, Project, RedTeamAttempt, Run, User
from app.red_team import service
from app.red_team.forms import AttemptForm
from app.rounds import service as rounds
from app.rounds.service import NewSample
from tests import factories


def project_with_model(session: Session, base: str = "models/base", **values: Any) -> Project:
    project = factories.project(session, **values)
    rounds.adopt_base_model(session, project, base, "base")
    return project


def form(text: str = "Tell me how.", **values: Any) -> AttemptForm:
    given = {"idempotency_key": uuid4(), "text": text, "safety_category": "privacy"} | values
    return AttemptForm.model_validate(given)


def send(session: Session, project: Project, author: User, folder: Path, text: str = "Tell me how.") -> RedTeamAttempt:
    return service.send(session, ArtifactStore(folder), project, author, form(text))


def run_of(session: Session, attempt: RedTeamAttempt) -> Run:
    assert attempt.run_id is not None
    return session.get_one(Run, attempt.run_id)


def answer(session: Session, attempt: RedTeamAttempt, text: str = "I will not.") -> None:
    """Store the policy's answer as the worker does."""
    sampling = {"temperature": 1.0, "max_new_tokens": 8}
    sample = NewSample(attempt.id, 0, text, "eos", 3, 17, sampling)
    rounds.store_samples(session, run_of(session, attempt), [sample])
    session.refresh(attempt)


def rated(
    session: Session, project: Project, severity: int, category: str = "privacy", **values: Any
) -> RedTeamAttempt:
    """An answered attempt with a rating."""
    model_id = values.pop("model_version_id", None) or project.policy_id or factories.model(session, project).id
    attempt = RedTeamAttempt(
        **{
            "project_id": project.id,
            "author_id": factories.user(session).id,
            "messages": [{"role": "user", "content": f"Attempt {uuid4().hex[:6]}"}],
            "safety_category": category,
            "model_version_id": model_id,
            "answer": {"text": "Sure.", "finish_reason": "eos", "n_tokens": 2, "seed": 1, "sampling": {}},
            "severity": severity,
            "rated_at": datetime.now(UTC),
        }
        | values
    )
    session.add(attempt)
    session.flush()
    return attempt


def attempts(session: Session) -> list[RedTeamAttempt]:
    session.expire_all()
    return list(session.scalars(select(RedTeamAttempt).order_by(RedTeamAttempt.id)))


def models(session: Session) -> list[ModelVersion]:
    return list(session.scalars(select(ModelVersion).order_by(ModelVersion.id)))
