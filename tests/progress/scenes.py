"""Finished rounds with evaluation results and people's judgments, without a worker."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy.orm import Session

from app.domain import yardstick
from app.domain.monitors import MONITORS
from app.models import Completion, Metric, ModelVersion, Project, Round, Snapshot, SnapshotComparison, User
from tests import factories


def evaluation(difference: float, spread: float = 0.2, *, prompts: int = 24, **given: float) -> dict[str, float]:
    """Return metrics of an evaluation where the previous policy scored 0.5 and only the given figures changed."""
    found = {
        "eval_prompts": float(prompts),
        "eval_objective/kl_k3": 4.0,
        "eval_objective/scores": 0.5 + difference,
        "eval_before/scores": 0.5,
        "eval_difference/scores": difference,
        "eval_difference/scores_low": difference - spread,
        "eval_difference/scores_high": difference + spread,
    }
    for figure in {monitor.figure for monitor in MONITORS}:
        change, before = (given.get("longer", 0.0), 40.0) if figure == "length" else (0.0, 0.5)
        found |= {f"eval_before/{figure}": before, f"eval_{figure}": before + change}
        bounds = (("", change), ("_low", change - 0.1), ("_high", change + 0.1))
        found |= {f"eval_difference/{figure}{end}": value for end, value in bounds}
    return found | {name: value for name, value in given.items() if name != "longer"}


def best_of(*points: tuple[int, float], gain: float, spread: float = 0.1, prompts: int = 24) -> dict[str, float]:
    """Return metrics of a yardstick: (n, mean best score) from n = 1, and the policy's gain over the first."""
    values = {yardstick.NAMES[n]: score for n, score in points}
    values |= {"eval_base/n": float(points[-1][0]), "eval_base/prompts": float(prompts), yardstick.GAIN: gain}
    return values | {f"{yardstick.GAIN}_low": gain - spread, f"{yardstick.GAIN}_high": gain + spread}


def add_round(
    session: Session,
    project: Project,
    number: int,
    metrics: Mapping[str, float],
    slices: Mapping[str, Mapping[str, float]] | None = None,
    *,
    accuracy: float = 0.7,
    **values: Any,
) -> Round:
    """Add a completed round from the project's policy to a new policy, which is waiting."""
    before = session.get(ModelVersion, project.policy_id) if project.policy_id else None
    if before is None:
        before = factories.model(session, project, "base", name="base")
        project.base_model_id = project.reference_id = project.policy_id = before.id
    given = {"policy_before_id": before.id, "reference_id": project.reference_id, "config": {"beta": 0.1}} | values
    round_ = factories.round_(session, project, number=number, state="done", **given)
    for kind in ("reward", "dpo", "evaluate"):
        run = factories.run(session, project, kind, round_id=round_.id, state="succeeded")
        if kind == "reward":
            session.add(Metric(run_id=run.id, name="eval_accuracy", step=1, value=accuracy))
        if kind == "dpo":
            policy = factories.model(session, project, name=f"policy-{number}", parent_id=before.id, run_id=run.id)
            round_.policy_after_id = policy.id
        if kind == "evaluate":
            for slice_, found in {"": metrics, **(slices or {})}.items():
                session.add_all(
                    Metric(run_id=run.id, name=name, slice=slice_, step=0, value=value) for name, value in found.items()
                )
    session.flush()
    return round_


def judge(
    session: Session,
    project: Project,
    round_: Round,
    preferences: Sequence[int],
    *,
    tokens: tuple[int, int] = (40, 40),
    labelers: Sequence[User] = (),
    **tags: str,
) -> None:
    """People's judgments of the new policy beside the previous one: one a prompt, 1 for the new policy, -1 for the
    previous one, 0 for neither. The labelers take turns; `tokens`: of the new and of the previous policy's answer."""
    people = labelers or [factories.user(session)]
    for n, preference in enumerate(preferences):
        prompt = factories.prompt(session, project, split="heldout", **tags)
        new, old = (
            factories.completion(session, prompt, model_version_id=model, n_tokens=length)
            for model, length in zip((round_.policy_after_id, round_.policy_before_id), tokens, strict=True)
        )
        ends = (old, new) if n % 2 else (new, old)
        comparison = factories.comparison(
            *(session, project),
            **{"prompt": prompt, "round_id": round_.id, "purpose": "human_eval", "overlap": 1},
            **{f"completion_{side}_id": end.id for side, end in zip("ab", ends, strict=True)},
        )
        side = preference if n % 2 else -preference
        factories.judgment(session, comparison, preference=side, labeler_id=people[n % len(people)].id)
        comparison.state = "settled"
    session.flush()


def snapshot(session: Session, round_: Round, comparison_ids: Sequence[int], **counts: Any) -> Snapshot:
    """Add what a round read."""
    found = Snapshot(
        project_id=round_.project_id,
        digest=f"{round_.id:064d}",
        location="snapshots/none",
        counts={"train": len(comparison_ids), "heldout": 0, "judgments": len(comparison_ids)} | counts,
    )
    session.add(found)
    session.flush()
    session.add_all(SnapshotComparison(snapshot_id=found.id, comparison_id=id_) for id_ in comparison_ids)
    round_.snapshot_id = found.id
    session.flush()
    return found


def answer(session: Session, project: Project, round_: Round, prompt_id: int, text: str) -> Completion:
    """Add samples of a round's new policy to a prompt."""
    run = factories.run(session, project, "sample", round_id=round_.id, state="succeeded")
    completion = Completion(
        prompt_id=prompt_id, run_id=run.id, model_version_id=round_.policy_after_id, sample_index=0, text=text
    )
    session.add(completion)
    session.flush()
    return completion
