"""The starter project of a first run: a rubric, prompts of our own, and calibration comparisons with known answers."""

import json
from pathlib import Path
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.artifacts import ArtifactStore
from app.models import Comparison, Completion, Project
from app.projects import service
from app.prompts import service as prompts
from app.rounds import service as rounds
from app.rubrics import service as rubrics
from app.settings import SamplingServer
from app.specs import Generation

CONTENT = Path(__file__).parent / "starter_content"
SLUG = "starter"
SOURCE = "starter"
# At temperature 1 a model this small seldom makes sense; training divides by the same temperature.
GENERATION = Generation(samples_per_prompt=4, max_new_tokens=64)

# About two of twenty tasks have known answers, until a labeler has met all six. They only measure; nobody is paused.
CALIBRATION = {"rate": 0.1, "threshold": 0.0}


def is_first_run(session: Session) -> bool:
    return not session.scalar(select(func.count()).select_from(Project))


def create(session: Session) -> Project:
    """Adds the project with its prompts and calibration comparisons; `use_model` then begins sampling."""
    lines = _read("prompts.jsonl")
    project = service.create(
        session,
        name="Starter",
        slug=SLUG,
        actor_id=None,
        description="Short questions for a small model: compare its answers, then start a round.",
        guideline=(CONTENT / "rubric.md").read_text(),
        generation=GENERATION,
    )
    project.labeling = project.labeling | {"calibration": CALIBRATION}
    prompts.add_many(session, project.id, [prompts.NewPrompt(**line, source=SOURCE) for line in lines])
    rubric = rubrics.current(session, project)
    for line in _read("calibration.jsonl"):
        prompt = prompts.add(session, project.id, line["messages"], split="calibration", source=SOURCE)
        texts = line["response_a"], line["response_b"]
        a, b = (Completion(prompt_id=prompt.id, text=text, source=SOURCE) for text in texts)
        session.add_all([a, b])
        session.flush()
        session.add(
            Comparison(
                project_id=project.id,
                prompt_id=prompt.id,
                completion_a_id=a.id,
                completion_b_id=b.id,
                rubric_id=rubric.id,
                purpose="calibration",
                gold=line["gold"],
                overlap=1,  # grows as labelers come
            )
        )
    return project


def use_model(
    session: Session,
    store: ArtifactStore,
    project: Project,
    name: str,
    location: str,
    server: SamplingServer | None = None,
) -> None:
    """Makes a model in the store the project's first policy and begins sampling from it."""
    rounds.adopt_base_model(session, project, location, name.rpartition("/")[2])
    rounds.begin_sampling(session, store, project, server)


def _read(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (CONTENT / name).read_text().splitlines()]
