"""A project with a model, prompts and decided comparisons: what every test of rounds begins with."""

from typing import Any

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from app.models import Comparison, Project, Prompt, Round, Run
from app.rounds import service
from app.rounds.forms import RoundConfig
from app.rounds.service import NewSample
from app.specs import Generation
from tests import factories

GENERATION = Generation(samples_per_prompt=4, max_new_tokens=8)


def make_project(session: Session, base: str = "models/base", *, train: int = 20, heldout: int = 2) -> Project:
    """A project whose base model has answered train and held-out prompts, two judgments on each pair."""
    project = factories.project(session, generation=GENERATION.model_dump())
    factories.published_rubric(session, project)
    service.adopt_base_model(session, project, base, "base")
    labelers = [factories.user(session).id for _ in range(2)]
    for split, count in (("train", train), ("heldout", heldout)):
        for _ in range(count):
            prompt = factories.prompt(session, project, split=split, domain="factual")
            decided(session, project, prompt, labelers, purpose=split)
    return project


def decided(
    session: Session,
    project: Project,
    prompt: Prompt,
    labelers: list[int],
    *,
    texts: tuple[str, str] = ("short and right", "long, long, long and wrong"),
    preferences: tuple[int, ...] = (-2, -1),
    aspects: dict[str, int] | None = None,
    **values: Any,
) -> Comparison:
    """A settled comparison of the prompt, judged by the labelers, who agree on the aspects."""
    given = {"texts": texts, "prompt": prompt, "overlap": len(preferences), "state": "open"} | values
    comparison = factories.comparison(session, project, **given)
    for labeler_id, preference in zip(labelers, preferences, strict=True):
        factories.judgment(session, comparison, preference=preference, labeler_id=labeler_id, aspects=aspects or {})
    comparison.state = "settled"
    comparison.consensus = sum(preferences) / len(preferences)
    session.flush()
    return comparison


def config(algorithm: str = "dpo", **values: Any) -> RoundConfig:
    sampling = GENERATION.model_dump(include={"samples_per_prompt", "max_new_tokens"})
    return RoundConfig.of({"algorithm": algorithm, **sampling, **values})


def jobs(session: Session) -> list[int]:
    """Ids of the runs that wait on the queue."""
    return list(
        session.scalars(text("SELECT (args->>'run_id')::int FROM procrastinate_jobs WHERE status = 'todo' ORDER BY id"))
    )


def last_run(session: Session, round_: Round) -> Run:
    return session.scalars(select(Run).where(Run.round_id == round_.id).order_by(Run.id.desc())).first() or Run()


def new_samples(prompt_id: int, texts: list[str], first: int = 0) -> list[NewSample]:
    sampling = {"temperature": 1.0, "max_new_tokens": 8}
    return [NewSample(prompt_id, first + i, text, "eos", 3, 17 + i, sampling) for i, text in enumerate(texts)]
