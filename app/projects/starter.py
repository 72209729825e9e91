"""The starter project of a first run: a rubric, prompts of our own, and calibration comparisons with known answers."""

import json
from pathlib import Path

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.models import Comparison, Completion, ModelVersion, Project
from app.projects import service
from app.prompts import service as prompts
from app.rounds import service as rounds
from app.rubrics import service as rubrics

CONTENT = Path(__file__).parent / "starter"
SLUG = "starter"
SOURCE = "starter"


def is_first_run(session: Session) -> bool:
    return not session.scalar(select(func.count()).select_from(Project))


def create(session: Session) -> Project:
    """Adds the project with its prompts and calibration comparisons; `use_model` then begins sampling."""
    project = service.create(
        session,
        name="Starter",
        slug=SLUG,
        actor_id=None,
        description="Short questions for a small model: compare its answers, then start a round.",
        guideline=(CONTENT / "rubric.md").read_text(),
    )
    for line in _read("prompts.jsonl"):
        prompts.add(session, project, source=SOURCE, **line)
    rubric = rubrics.current(session, project)
    for line in _read("calibration.jsonl"):
        texts = line.pop("response_a"), line.pop("response_b")
        gold = line.pop("gold")
        prompt = prompts.add(session, project, source=SOURCE, split="calibration", **line)
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
                gold=gold,
                overlap=project.overlap,
            )
        )
    return project


def use_model(session: Session, project: Project, name: str, location: str) -> None:
    """Makes a model in the store the project's first policy and begins sampling from it."""
    model = ModelVersion(project_id=project.id, role="base", name=name.rpartition("/")[2], base=location, card={})
    session.add(model)
    session.flush()
    project.base_model_id = project.policy_id = model.id
    rounds.begin_sampling(session, project)


def _read(name: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in (CONTENT / name).read_text().splitlines()]
