"""When a comparison has all it needs: more are asked, or it is settled, or sent to review. The one rule for it."""

from collections import defaultdict
from collections.abc import Collection, Iterable
from typing import Any

from sqlalchemy.orm import Session

from app.domain.consensus import Consensus, consensus
from app.domain.overlap import Asked, Growth, agreement, growth, sureness, why_review
from app.judging import AdaptiveOverlap, LabelingSettings
from app.labeling import calibration, settling_queries
from app.labeling.settling_queries import Answered
from app.models import Project

BATCH = 5000


def settle(session: Session, comparison_ids: Collection[int]) -> int:
    """Of these comparisons, closes those that have all their judgments; returns how many.

    Locks them. Agreement is the share of pairs of judgments on the same side; below the project's review threshold, or
    where too few could judge or somebody set a content flag, a comparison goes to review. Where overlap adapts it asks
    on while the answers leave doubt. The pairs of a ranking go together: they ask for more together, since one answer
    is about all of them. Calibration items are never settled; an answer to one is looked at instead, and may pause the
    labeler. A repeat is closed without a consensus of its own. Objects loaded before are not refreshed.
    """
    closed = 0
    ids = sorted(set(comparison_ids))
    for start in range(0, len(ids), BATCH):
        rows = settling_queries.answered(session, ids[start : start + BATCH])
        projects = settling_queries.projects(session, {row.project_id for row in rows})
        for row in rows:
            if row.gold is not None:
                calibration.look_at(session, projects[row.project_id], row.labelers[-1])
        changes = [
            change
            for task in _tasks(row for row in rows if row.gold is None)
            for change in _decide(task, projects[task[0].project_id])
        ]
        settling_queries.write(session, changes)
        closed += sum(change["state"] != "open" for change in changes)
    return closed


def _tasks(rows: Iterable[Answered]) -> list[list[Answered]]:
    """What is decided together: a comparison alone, or a ranking's pairs."""
    tasks: defaultdict[tuple[str, int], list[Answered]] = defaultdict(list)
    for row in rows:
        tasks[("pair", row.id) if row.ranking_id is None else ("ranking", row.ranking_id)].append(row)
    return list(tasks.values())


def _decide(task: list[Answered], project: Project) -> list[dict[str, Any]]:
    """New values of the task's comparisons; none where answers are still to come."""
    if any(row.judgment_count < row.overlap for row in task):
        return []
    settings = LabelingSettings.model_validate(project.labeling)
    if task[0].purpose == "repeat":
        return [_closed(task[0], None, None, None)]
    asked = [_asked(row, settings) for row in task]
    # Unranked responses leave pairs undecided; the ranking as a whole was judged if any pair was.
    whole = asked[0]._replace(decided=max(each.decided for each in asked), sure=all(each.sure for each in asked))
    if (more := growth(whole)).more:
        return [_grown(row, more) for row in task]
    changes = []
    for row, each in zip(task, asked, strict=True):
        said = row.decided
        agreed = agreement(said)
        judged = each._replace(decided=whole.decided) if row.ranking_id else each
        reason = why_review(judged, agreed, project.review_threshold, flagged=row.flagged)
        if reason == "unjudgeable" and not row.offered:
            reason = None  # the ranking is reviewed once, through the pair that was offered
        changes.append(_closed(row, agreed, _consensus(row, settings), reason))
    return changes


def _asked(row: Answered, settings: LabelingSettings) -> Asked:
    sure = (settings.adaptive or AdaptiveOverlap()).sure
    said = row.decided
    return Asked(row.overlap, row.grown, row.overlap_max, len(said), bool(said) and sureness(said) >= sure)


def _consensus(row: Answered, settings: LabelingSettings) -> Consensus | None:
    return consensus(row.decided)


def _grown(row: Answered, more: Growth) -> dict[str, Any]:
    return row.values | {"overlap": row.overlap + more.more, "grown": row.grown + more.grown}


def _closed(row: Answered, agreed: float | None, said: Consensus | None, reason: str | None) -> dict[str, Any]:
    return row.values | {
        "state": "in_review" if reason else "settled",
        "review_reason": reason,
        "agreement": agreed,
        "consensus": said.preference if said else None,
        "p_b": said.p_b if said else None,
        "p_tie": None,
    }
