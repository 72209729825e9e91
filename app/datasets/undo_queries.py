"""SQL of undoing an import."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from app.models import DataImport, User

SHOWN = 20


class Listed(NamedTuple):
    """An import as lists show it, without the ids of its rows."""

    id: int
    created_at: datetime
    actor: str | None  # None: from the command line
    files: list[str]
    added: dict[str, int]
    undone_at: datetime | None


def recent(session: Session, project_id: int) -> list[Listed]:
    """Return the newest imports."""
    one = DataImport
    found = (
        select(one.id, one.created_at, User.name, one.files, one.added, one.undone_at)
        .outerjoin(User, User.id == DataImport.actor_id)
        .where(DataImport.project_id == project_id)
        .order_by(DataImport.id.desc())
        .limit(SHOWN)
    )
    return [Listed(*row) for row in session.execute(found)]


def locked(session: Session, project_id: int, import_id: int) -> DataImport | None:
    found = select(DataImport).where(DataImport.id == import_id, DataImport.project_id == project_id)
    return session.scalars(found.with_for_update()).one_or_none()


def copies(session: Session, ids: Sequence[int]) -> list[int]:
    """Return comparisons made from these: asked again under a newer rubric, calibration items, and repeats."""
    statement = """
        WITH RECURSIVE found (id) AS (
            SELECT unnest(cast(:ids AS bigint[]))
            UNION
            SELECT copy.id FROM found CROSS JOIN LATERAL (
                SELECT id FROM comparison WHERE repeat_of_id = found.id
                UNION ALL SELECT id FROM comparison WHERE relabel_of_id = found.id
            ) AS copy
        )
        SELECT id FROM found WHERE id <> ALL(:ids) ORDER BY id
    """
    return list(session.scalars(text(statement), {"ids": list(ids)}))


def judged_here(session: Session, comparisons: Sequence[int], brought: Sequence[int]) -> int:
    """Count live judgments on these comparisons that the import did not bring."""
    statement = """
        SELECT count(*) FROM judgment
        WHERE comparison_id = ANY(:comparisons) AND superseded_at IS NULL AND id <> ALL(:brought)
    """
    return int(session.scalar(text(statement), {"comparisons": list(comparisons), "brought": list(brought)}) or 0)


def withdraw_judgments(session: Session, ids: Sequence[int]) -> int:
    """Supersede the judgments that are live; return how many. Their comparisons are locked first, by id."""
    _run(
        session,
        """
        SELECT id FROM comparison WHERE id IN (SELECT comparison_id FROM judgment WHERE id = ANY(:ids))
        ORDER BY id FOR UPDATE
        """,
        ids=ids,
    )
    statement = """
        UPDATE judgment SET superseded_at = now(), superseded_for = 'removed'
        WHERE id = ANY(:ids) AND superseded_at IS NULL
    """
    return _run(session, statement, ids=ids)


def withdraw_comparisons(session: Session, ids: Sequence[int]) -> int:
    """Withdraw comparisons: nobody is asked them and nothing reads them. The same pairs can be imported again."""
    _run(session, "SELECT id FROM comparison WHERE id = ANY(:ids) ORDER BY id FOR UPDATE", ids=ids)
    statement = """
        UPDATE comparison SET state = 'withdrawn', flagged = false, digest = NULL, external_id = NULL
        WHERE id = ANY(:ids) AND digest IS NOT NULL
    """
    return _run(session, statement, ids=ids)


def withdraw_copies(session: Session, ids: Sequence[int]) -> None:
    _run(session, "SELECT id FROM comparison WHERE id = ANY(:ids) ORDER BY id FOR UPDATE", ids=ids)
    _run(session, "UPDATE comparison SET state = 'withdrawn', flagged = false WHERE id = ANY(:ids)", ids=ids)


def withdraw_demonstrations(session: Session, ids: Sequence[int], reviewer_id: int | None) -> int:
    statement = """
        UPDATE demonstration SET state = 'withdrawn', digest = 'withdrawn ' || id,
            reviewer_id = coalesce(cast(:reviewer AS bigint), reviewer_id), reviewed_at = now(),
            review_note = 'The import that brought it was undone.'
        WHERE id = ANY(:ids) AND state <> 'withdrawn'
    """
    return _run(session, statement, ids=ids, reviewer=reviewer_id)


def withdraw_thumbs(session: Session, ids: Sequence[int]) -> int:
    statement = """
        UPDATE thumb SET superseded_at = now(), superseded_for = 'removed'
        WHERE id = ANY(:ids) AND superseded_at IS NULL
    """
    return _run(session, statement, ids=ids)


def withdraw_prompts(session: Session, ids: Sequence[int]) -> int:
    """Withdraw the prompts that nothing else needs.

    A prompt stays if it has a comparison, a demonstration, a thumb, an open writing task, a red-team attempt or a
    sampled response.
    """
    statement = """
        UPDATE prompt SET split = 'withdrawn', digest = 'withdrawn ' || id
        WHERE id = ANY(:ids) AND split <> 'withdrawn'
            AND NOT EXISTS (
                SELECT FROM comparison WHERE prompt_id = prompt.id AND state <> 'withdrawn'
            )
            AND NOT EXISTS (
                SELECT FROM demonstration WHERE prompt_id = prompt.id AND state <> 'withdrawn'
            )
            AND NOT EXISTS (SELECT FROM demonstration_task WHERE prompt_id = prompt.id)
            AND NOT EXISTS (SELECT FROM red_team_attempt WHERE prompt_id = prompt.id)
            AND NOT EXISTS (
                SELECT FROM completion WHERE prompt_id = prompt.id AND run_id IS NOT NULL
            )
            AND NOT EXISTS (
                SELECT FROM thumb JOIN completion ON completion.id = thumb.completion_id
                WHERE completion.prompt_id = prompt.id AND thumb.superseded_at IS NULL
            )
    """
    return _run(session, statement, ids=ids)


def restore_overlaps(session: Session, overlaps: dict[int, int]) -> list[int]:
    """Restore comparisons' earlier overlap and open them again; return ids of those that were not withdrawn."""
    statement = """
        UPDATE comparison SET
            overlap = greatest(was.overlap, judgment_count + lease_count, 1),
            state = CASE WHEN state IN ('settled', 'in_review') THEN 'open' ELSE state END,
            settled_at = CASE WHEN state IN ('settled', 'in_review') THEN NULL ELSE settled_at END,
            review_reason = NULL, agreement = NULL, consensus = NULL, p_b = NULL, p_tie = NULL
        FROM unnest(cast(:ids AS bigint[]), cast(:overlaps AS bigint[])) AS was (id, overlap)
        WHERE comparison.id = was.id AND state IN ('open', 'settled', 'in_review')
        RETURNING comparison.id
    """
    given = {"ids": list(overlaps), "overlaps": list(overlaps.values())}
    return list(session.scalars(text(statement), given))


def read_by_rounds(session: Session, found: DataImport, copies: Sequence[int]) -> int:
    """Count the rounds that were trained on something the import brought.

    That is its comparisons and their copies, its judgments on older comparisons, its demonstrations and its thumbs.

    A judgment counts if it was stored and live when the round was frozen. Its own time does not matter, because an
    imported file may give any time.
    """
    statement = """
        WITH used (id) AS (
            SELECT snapshot_id FROM snapshot_comparison WHERE comparison_id = ANY(:comparisons)
            UNION SELECT held.snapshot_id
                FROM judgment
                JOIN snapshot_comparison AS held ON held.comparison_id = judgment.comparison_id
                JOIN snapshot ON snapshot.id = held.snapshot_id
                WHERE judgment.id = ANY(:judgments) AND snapshot.created_at >= :imported_at
                    AND (judgment.superseded_at IS NULL OR judgment.superseded_at > snapshot.created_at)
            UNION SELECT snapshot_id FROM snapshot_demonstration WHERE demonstration_id = ANY(:demonstrations)
            UNION SELECT snapshot_id FROM snapshot_thumb WHERE thumb_id = ANY(:thumbs)
        )
        SELECT count(*) FROM round
        WHERE EXISTS (SELECT FROM used WHERE id IN (snapshot_id, ptx_snapshot_id, thumbs_snapshot_id))
    """
    given: dict[str, Any] = {name: list(getattr(found, name)) for name in ("judgments", "demonstrations", "thumbs")}
    given |= {"comparisons": [*found.comparisons, *copies], "imported_at": found.created_at}
    return int(session.scalar(text(statement), given) or 0)


def _run(session: Session, statement: str, *, ids: Sequence[int], **values: Any) -> int:
    done: Any = session.execute(text(statement), {"ids": list(ids), **values})
    return int(done.rowcount)
