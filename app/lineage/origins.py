"""Links between models and people: what a model learned from, and which models learned from a person."""

from typing import NamedTuple

from sqlalchemy.orm import Session

from app.errors import NotFound
from app.lineage import origin_queries
from app.lineage.origin_queries import LearnedFrom
from app.models import ModelVersion, Project, Run
from app.rounds.model_queries import round_of


class Origin(NamedTuple):
    """What a model's round read, and how the model was trained.

    run: the run that trained the model. code: the code version of the run; empty for models made before it was
    recorded.
    """

    learned: LearnedFrom
    reward_model: ModelVersion | None
    run: Run

    @property
    def code(self) -> dict[str, str]:
        return (self.run.result or {}).get("code", {})


def of(session: Session, model: ModelVersion) -> Origin | None:
    """Return a model's origin; None if no round trained it."""
    round_ = round_of(session, model)
    run = session.get(Run, model.run_id) if model.run_id else None
    if round_ is None or run is None:
        return None
    reward_id = round_.reward_model_id
    reward = session.get(ModelVersion, reward_id) if reward_id not in (None, model.id) else None
    return Origin(origin_queries.learned_from(session, round_), reward, run)


class Learners(NamedTuple):
    """The models that learned from a person or a comparison, and how a page names it."""

    ids: set[int]
    words: str


def learners(session: Session, project: Project, labeler_id: int | None, comparison_id: int | None) -> Learners:
    """Return the models that learned from a person's work, or else from a comparison.

    Raises:
        NotFound: the project has no such person or comparison.
    """
    if labeler_id is not None:
        name = origin_queries.name_of(session, project.id, labeler_id)
        if name is None:
            raise NotFound(
                "This project has no labeler with that number.",
                "The Labelers page lists everybody who has judged or written here.",
            )
        return Learners(set(origin_queries.models_of_labeler(session, project.id, labeler_id)), name)
    if comparison_id is None or not origin_queries.has_comparison(session, project.id, comparison_id):
        raise NotFound("This project has no such comparison.", "The Models page lists all models.")
    found = origin_queries.models_of_comparison(session, project.id, comparison_id)
    return Learners(set(found), f"comparison {comparison_id}")
