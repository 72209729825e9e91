"""Which model is a project's policy: what a round's end decides, and what operators decide afterwards.

Each function works in the caller's transaction and never commits.
"""

import math
from collections.abc import Mapping

from sqlalchemy.orm import Session

from app.audit import audit
from app.domain.intervals import Interval
from app.domain.verdicts import by_reward_model
from app.errors import Conflict, InvalidInput
from app.models import ModelVersion, Project, Round, User
from app.rounds import model_queries, queries

POLICY_ROLES = ("base", "sft", "policy")
DIFFERENCE = "eval_difference/scores"


def difference_of(metrics: Mapping[str, float]) -> Interval | None:
    """Mean score of the new policy less that of the one before, of an evaluation's metrics; none if it has none."""
    found = [metrics.get(name, math.nan) for name in (DIFFERENCE, f"{DIFFERENCE}_low", f"{DIFFERENCE}_high")]
    return Interval(*found) if all(map(math.isfinite, found)) else None


def decide(session: Session, project: Project, round_: Round, metrics: Mapping[str, float]) -> None:
    """Makes the new policy the project's, unless the round's reward model finds it worse than the one before.

    Args:
        metrics: of the round's evaluation; empty if it had none.
    """
    verdict = by_reward_model(difference_of(metrics))
    # A round that failed and was retried leaves time to adopt a model: whoever did so has decided.
    if project.policy_id == round_.policy_before_id:
        round_.adopted = verdict is None or verdict.word != "worse"
    else:
        round_.adopted = project.policy_id == round_.policy_after_id
    if round_.adopted and round_.policy_after_id is not None:
        use(session, project, session.get_one(ModelVersion, round_.policy_after_id))
    found = verdict and verdict.word
    audit(session, None, "round.decided", project.id, number=round_.number, verdict=found, adopted=round_.adopted)


def use(session: Session, project: Project, model: ModelVersion) -> None:
    """Makes a model the project's policy, and the fine-tuned or base model behind it the project's reference."""
    project.policy_id = model.id
    project.reference_id = model_queries.reference_behind(session, model.id)


def adopt(session: Session, project: Project, model: ModelVersion, actor: User) -> None:
    """An operator makes a model the project's policy: a new one, or any earlier one.

    Raises:
        Conflict: a round is under way, or the model is the project's policy already.
        InvalidInput: the model is not a policy.
    """
    session.flush()
    session.refresh(project, with_for_update={"key_share": True})
    if model.role not in POLICY_ROLES or model.project_id != project.id:
        raise InvalidInput(f"{model.name} is not a policy.", "Choose a base model, a fine-tuned model or a policy.")
    if active := queries.active_round(session, project.id):
        raise Conflict(
            f"Round {active.number} is still {active.state} and began with the current policy.",
            "Wait until it is done, or cancel it.",
        )
    if project.policy_id == model.id:
        raise Conflict(f"{model.name} is the project's policy already.", "Nothing is left to do.")
    details = {"model": model.id, "name": model.name, "instead_of": project.policy_id}
    use(session, project, model)
    if made_by := model_queries.round_of(session, model):
        made_by.adopted = True
    audit(session, actor.id, "model.adopted", project.id, **details)


def is_busy(session: Session, project: Project) -> bool:
    """Whether a round is under way, so that no model can be adopted."""
    return queries.active_round(session, project.id) is not None
