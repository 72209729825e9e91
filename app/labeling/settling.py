"""Settling: the one rule for whether a comparison needs more judgments, is settled, or goes to review."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from sqlalchemy.orm import Session

from app.documents import AdaptiveOverlap, LabelingSettings
from app.domain.consensus import Consensus
from app.domain.overlap import Asked, Growth, agreement, growth, sureness, why_review
from app.labelers import fitting
from app.labelers.fitting import Said
from app.labeling import calibration, settling_queries
from app.labeling.settling_queries import Answered, Moves
from app.models import Project

BATCH = 5000


def settle(session: Session, comparison_ids: Collection[int], *, is_locked: bool = False) -> int:
    """Close the given comparisons that have all their judgments; return how many.

    Locks the comparisons and the whole rankings that they belong to, unless the caller holds them locked. Agreement is
    the share of pairs of judgments on the same side. A comparison goes to review if agreement is below the project's
    review threshold, if too few labelers could judge it, or if somebody set a content flag. With adaptive overlap, more
    judgments are requested while the answers leave doubt. All pairs of a ranking grow together, because one answer
    covers them all. Calibration items are never settled; instead, the labeler's record is checked after an answer, and
    they may be paused. A repeat is closed without a consensus of its own. Objects loaded before are not refreshed.
    """
    closed = 0
    ids = sorted(set(comparison_ids))
    for start in range(0, len(ids), BATCH):
        some = ids[start : start + BATCH]
        rows = settling_queries.answered(session, some if is_locked else settling_queries.lock(session, some))
        for project_id in sorted({row.project_id for row in rows}):
            project = session.get_one(Project, project_id)
            changes = _look_at(session, project, [row for row in rows if row.project_id == project.id])
            settling_queries.write(session, changes)
            closed += sum(change["state"] != "open" for change in changes)
    return closed


def moves(session: Session, project: Project, threshold: float) -> Moves:
    """Count the decided comparisons that another review threshold would settle or send to review."""
    return settling_queries.moves(session, project.id, threshold)


def use_threshold(session: Session, project: Project, threshold: float) -> Moves:
    """Set the project's review threshold and apply it to comparisons that are already decided.

    Returns:
        how many it settled and sent to review. Objects loaded before are not refreshed.
    """
    project.review_threshold = threshold
    session.flush()
    found = settling_queries.moves(session, project.id, threshold)
    settling_queries.move(session, project.id, threshold)
    return found


def _look_at(session: Session, project: Project, rows: list[Answered]) -> list[dict[str, Any]]:
    """Return new values for the comparisons that have all their judgments, and pause labelers who fail calibration."""
    for row in rows:
        if row.gold is not None:
            calibration.look_at(session, project, row.labelers[-1])
    due = [
        task
        for task in _tasks(row for row in rows if row.gold is None)
        if all(row.judgment_count >= row.overlap for row in task)
    ]
    decided = [row for task in due for row in task if row.decided and row.purpose != "repeat"]
    said = [Said([who for who, _ in row.said], row.decided, row.strengths) for row in decided]
    found = {row.id: each for row, each in zip(decided, fitting.decide(session, project, said), strict=True)}
    settings = LabelingSettings.model_validate(project.labeling)
    return [change for task in due for change in _decide(task, project, settings, found)]


def _tasks(rows: Iterable[Answered]) -> list[list[Answered]]:
    """Group rows that are decided together: a comparison alone, or a ranking's pairs."""
    tasks: defaultdict[tuple[str, int], list[Answered]] = defaultdict(list)
    for row in rows:
        tasks[("pair", row.id) if row.ranking_id is None else ("ranking", row.ranking_id)].append(row)
    return list(tasks.values())


def _decide(
    task: list[Answered], project: Project, settings: LabelingSettings, found: Mapping[int, Consensus]
) -> list[dict[str, Any]]:
    """Return new values for rows that are decided together.

    Args:
        found: the consensus of each comparison with at least one preference.
    """
    if task[0].purpose == "repeat":
        return [_closed(task[0], None, None, None)]
    asked = [
        Asked(
            overlap=row.overlap,
            grown=row.grown,
            most=row.overlap_max,
            decided=len(row.decided),
            sure=_is_sure(row, settings, found.get(row.id)),
            could_answer=row.could_answer,
        )
        for row in task
    ]
    # Unranked responses leave pairs undecided; the ranking as a whole was judged if any pair was.
    whole = asked[0]._replace(
        decided=max(each.decided for each in asked),
        sure=any(each.decided for each in asked) and all(each.sure for each in asked if each.decided),
    )
    if (more := growth(whole)).more:
        return [_grown(row, more) for row in task]
    changes = []
    for row in task:
        agreed = agreement(row.decided)
        reason = why_review(whole, agreed, project.review_threshold, flagged=row.flagged)
        if reason == "unjudgeable" and not row.offered:
            reason = None  # the ranking is reviewed once, through its offered pair
        changes.append(_closed(row, agreed, found.get(row.id), reason))
    return changes


def _is_sure(row: Answered, settings: LabelingSettings, said: Consensus | None) -> bool:
    """Tell whether the likeliest outcome is as probable as the project requires, by its consensus method."""
    if said is None or row.overlap_max is None:
        return False
    if settings.consensus in ("majority", "strength_weighted"):
        # For these methods p_b is the share of people for B, not the probability that the majority prefers B.
        probability = sureness(row.decided)
    else:
        probability = max(said.p_b, 1 - said.p_b, said.p_tie)
    return probability >= (settings.adaptive or AdaptiveOverlap()).sure


def _grown(row: Answered, more: Growth) -> dict[str, Any]:
    return row.values | {"overlap": row.overlap + more.more, "grown": row.grown + more.grown}


def _closed(row: Answered, agreed: float | None, said: Consensus | None, reason: str | None) -> dict[str, Any]:
    return row.values | {
        "state": "in_review" if reason else "settled",
        "review_reason": reason,
        "agreement": agreed,
        "consensus": said.preference if said else None,
        "p_b": said.p_b if said else None,
        "p_tie": said.p_tie if said else None,
    }
