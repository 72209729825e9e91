"""Which model is a project's policy: decided at a round's end, by people afterwards (`app.rounds.promotion`), or by
operators.

Each function works in the caller's transaction and never commits.
"""

import math
from collections.abc import Mapping

from sqlalchemy.orm import Session

from app.artifacts import ArtifactStore
from app.audit import audit
from app.domain.intervals import Interval
from app.domain.verdicts import by_reward_model
from app.errors import Conflict, InvalidInput
from app.form_fields import one_line
from app.models import ModelVersion, Project, Round, User
from app.rounds import model_queries, queries
from app.suites import service as suites

POLICY_ROLES = ("base", "sft", "policy")
DIFFERENCE = "eval_difference/scores"
LONGEST_REASON = 1000


def difference_of(metrics: Mapping[str, float]) -> Interval | None:
    """Return the new policy's mean score minus the previous one's, from an evaluation's metrics; None if missing."""
    return interval_of(metrics, DIFFERENCE)


def interval_of(metrics: Mapping[str, float], name: str) -> Interval | None:
    """Return a figure that an evaluation reports with its interval; None if it is missing."""
    found = [metrics.get(each, math.nan) for each in (name, f"{name}_low", f"{name}_high")]
    return Interval(*found) if all(map(math.isfinite, found)) else None


def lost_files(store: ArtifactStore, model: ModelVersion) -> InvalidInput | None:
    """Why a model cannot be used, if files of it that a run made are gone.

    A base model may be a name on the hub, or a folder on the worker's machine alone: that tells nothing.
    """
    for location in (model.adapter, model.base):
        if location and store.run_of(location) is not None and not store.exists(location):
            return InvalidInput(
                f"The files of {model.name} are gone: nothing lies at {location} in the artifacts.",
                "Restore them from a backup, or choose another policy on the Models page.",
            )
    return None


def decide(session: Session, project: Project, round_: Round, metrics: Mapping[str, float]) -> None:
    """Decide what happens to the new policy when its round ends.

    By default the policy waits until people prefer it to the previous one (`adopted` stays None). If the round's
    setting `promotion` is `reward_model`, it becomes the project's policy at once unless the reward model finds it
    worse, or a suite holds it back.

    Args:
        metrics: of the round's evaluation; empty if it had none.
    """
    verdict = by_reward_model(difference_of(metrics))
    held = suites.held_back(session, round_)
    # Somebody may have adopted a model between a failure and the retry of this round. That decision stays.
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
    """Make a model the project's policy, and its nearest fine-tuned or base model the project's reference."""
    project.policy_id = model.id
    project.reference_id = model_queries.reference_behind(session, model.id)


def was_policy(session: Session, project: Project, model: ModelVersion) -> bool:
    """Tell whether the model has been the project's policy before, so that going back to it needs no reason."""
    return model.id == project.base_model_id or model.id in model_queries.had_policies(session, project.id)


def adopt(
    session: Session, store: ArtifactStore, project: Project, model: ModelVersion, actor: User, reason: str = ""
) -> None:
    """Make a model the project's policy on behalf of an operator; it may be new or any earlier one.

    Args:
        reason: why, for the audit log; required unless the project has had this policy before.

    Raises:
        Conflict: a round is active, or the model is already the project's policy.
        InvalidInput: the model is not a policy, its files are gone, or the reason is missing or too long.
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
    if lost := lost_files(store, model):
        raise lost
    if len(reason) > LONGEST_REASON:
        raise InvalidInput(f"The reason is longer than {LONGEST_REASON} characters.", "Shorten it.")
    if not reason and not was_policy(session, project, model):
        raise InvalidInput(
            f"People have not shown yet that they prefer {model.name}, so adopting it needs a reason.",
            "Write in a sentence why it should become the policy. The audit log keeps the reason.",
        )
    change(session, project, model, actor.id, reason or "Back to an earlier policy.")


def change(session: Session, project: Project, model: ModelVersion, actor_id: int | None, reason: str) -> None:
    """Make a model the project's policy, and audit who did so (None: people's judgments) and why."""
    details = {"model": model.id, "name": model.name, "instead_of": project.policy_id, "reason": reason}
    use(session, project, model)
    if made_by := model_queries.round_of(session, model):
        made_by.adopted = True
    audit(session, actor_id, "model.adopted", project.id, **details)


def is_busy(session: Session, project: Project) -> bool:
    """Tell whether a round is active, so that no model can be adopted."""
    return queries.active_round(session, project.id) is not None
