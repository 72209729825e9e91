"""Which model is a project's policy: what a round's end decides, what people decide after it (`app.rounds.promotion`),
and what operators decide.

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
from app.suites import service as suites
from app.typed import one_line

POLICY_ROLES = ("base", "sft", "policy")
DIFFERENCE = "eval_difference/scores"
LONGEST_REASON = 1000


def difference_of(metrics: Mapping[str, float]) -> Interval | None:
    """Mean score of the new policy less that of the one before, of an evaluation's metrics; none if it has none."""
    return interval_of(metrics, DIFFERENCE)


def interval_of(metrics: Mapping[str, float], name: str) -> Interval | None:
    """A figure that an evaluation reports with its interval."""
    found = [metrics.get(each, math.nan) for each in (name, f"{name}_low", f"{name}_high")]
    return Interval(*found) if all(map(math.isfinite, found)) else None


def decide(session: Session, project: Project, round_: Round, metrics: Mapping[str, float]) -> None:
    """Decide what happens to the new policy when its round ends.

    By default the policy waits until people prefer it to the one before (`adopted` is none). If the round's setting
    `promotion` is `reward_model`, it becomes the project's policy at once unless the reward model finds it worse, or a
    suite holds it back.

    Args:
        metrics: of the round's evaluation; empty if it had none.
    """
    verdict = by_reward_model(difference_of(metrics))
    held = suites.held_back(session, round_)
    # A round that failed and was retried leaves time to adopt a model: whoever did so has decided.
    if project.policy_id != round_.policy_before_id:
        round_.adopted = project.policy_id == round_.policy_after_id
    elif round_.config.get("promotion") == "reward_model":
        round_.adopted = not held and (verdict is None or verdict.word != "worse")
    if round_.adopted and round_.policy_after_id is not None:
        use(session, project, session.get_one(ModelVersion, round_.policy_after_id))
    found = verdict and verdict.word
    details: dict[str, object] = {"number": round_.number, "verdict": found, "adopted": round_.adopted}
    if held:
        details["held_by"] = [each.words for each in held]
    audit(session, None, "round.decided", project.id, **details)


def use(session: Session, project: Project, model: ModelVersion) -> None:
    """Makes a model the project's policy, and the fine-tuned or base model behind it the project's reference."""
    project.policy_id = model.id
    project.reference_id = model_queries.reference_behind(session, model.id)


def was_policy(session: Session, project: Project, model: ModelVersion) -> bool:
    """Whether the model has been the project's policy before, so that going back to it needs no reason."""
    return model.id == project.base_model_id or model.id in model_queries.had_policies(session, project.id)


def adopt(session: Session, project: Project, model: ModelVersion, actor: User, reason: str = "") -> None:
    """An operator makes a model the project's policy: a new one, or any earlier one.

    Args:
        reason: why, for the audit log; required unless the project goes back to a policy that it has had.

    Raises:
        Conflict: a round is under way, or the model is the project's policy already.
        InvalidInput: the model is not a policy, or the reason is missing or too long.
    """
    reason = one_line(reason)
    session.flush()
    session.refresh(project, with_for_update={"key_share": True})
    if model.role not in POLICY_ROLES or model.project_id != project.id:
        raise InvalidInput(f"{model.name} is not a policy.", "Choose a base model, a fine-tuned model or a policy.")
    if active := queries.active_round(session, project.id):
        raise Conflict(
            f"Round {active.number} is still {active.state} and started from the current policy.",
            "Wait until it is done, or cancel it.",
        )
    if project.policy_id == model.id:
        raise Conflict(f"{model.name} is already the project's policy.", "There is nothing to do.")
    if len(reason) > LONGEST_REASON:
        raise InvalidInput(f"The reason is longer than {LONGEST_REASON} characters.", "Shorten it.")
    if not reason and not was_policy(session, project, model):
        raise InvalidInput(
            f"People have not shown yet that they prefer {model.name}, so adopting it needs a reason.",
            "Write in a sentence why it should become the policy. The audit log keeps the reason.",
        )
    change(session, project, model, actor.id, reason or "Back to an earlier policy.")


def change(session: Session, project: Project, model: ModelVersion, actor_id: int | None, reason: str) -> None:
    """Makes a model the project's policy, and writes down who did so (none: people's judgments) and why."""
    details = {"model": model.id, "name": model.name, "instead_of": project.policy_id, "reason": reason}
    use(session, project, model)
    if made_by := model_queries.round_of(session, model):
        made_by.adopted = True
    audit(session, actor_id, "model.adopted", project.id, **details)


def is_busy(session: Session, project: Project) -> bool:
    """Whether a round is under way, so that no model can be adopted."""
    return queries.active_round(session, project.id) is not None
