"""Undoing an import withdraws what it added. Nothing is deleted, because models may have been trained on it."""

from collections import Counter
from dataclasses import dataclass

from sqlalchemy import func
from sqlalchemy.orm import Session

from app.audit import audit
from app.datasets import queries, undo_queries
from app.errors import Conflict, NotFound
from app.labelers import fitting
from app.labeling import settling
from app.models import DataImport, Project

WHAT = ("prompts", "comparisons", "judgments", "demonstrations", "thumbs")


@dataclass(frozen=True)
class Undone:
    """What was withdrawn.

    people: other people's judgments on it, which no longer count. kept: prompts that stay because other work needs
    them. rounds: rounds that had read some of it; they stay as they are.
    """

    withdrawn: Counter[str]
    people: int
    kept: int
    rounds: int

    def describe(self) -> str:
        parts = [f"{self.withdrawn[what]:,} {what}" for what in WHAT]
        said = f"Withdrawn: {', '.join(parts)}."
        if self.people:
            said += f" Judgments given here that no longer count: {self.people:,}."
        if self.kept:
            said += f" {self.kept:,} prompts stay, because other comparisons, answers, thumbs or samples use them."
        if self.rounds:
            said += f" Rounds that learned from some of it: {self.rounds:,}. Their models stay as they are."
        return said


def judged_here(session: Session, project: Project, import_id: int) -> int:
    """Count live judgments that an undo would also withdraw although the import did not bring them."""
    found = undo_queries.locked(session, project.id, import_id)
    if found is None or found.undone_at is not None:
        return 0  # `undo` reports it
    return undo_queries.judged_here(session, _with_copies(session, found), found.judgments)


def _with_copies(session: Session, found: DataImport) -> list[int]:
    return [*found.comparisons, *undo_queries.copies(session, found.comparisons)]


def undo(session: Session, project: Project, import_id: int, *, actor_id: int | None = None) -> Undone:
    """Withdraw the prompts, comparisons, judgments, demonstrations and thumbs that an import added.

    Comparisons that existed before are settled again by their other judgments, and the project's consensus is fitted
    again. Judgments that people gave on the import's own comparisons stay in the history but no longer count.
    Comparisons made from these are withdrawn too: copies under a newer rubric, calibration items and repeats. The same
    files can be imported again.

    Raises:
        NotFound: the project has no import with this number.
        Conflict: it was undone already.
    """
    queries.lock_project(session, project.id)
    found = undo_queries.locked(session, project.id, import_id)
    if found is None:
        raise NotFound(f"There is no import {import_id} in this project.", "The Data page lists all imports.")
    if found.undone_at is not None:
        raise Conflict(f"Import {import_id} was already undone.", "To restore its data, import the files again.")
    all_of_them = _with_copies(session, found)
    copies = all_of_them[len(found.comparisons) :]
    rounds = undo_queries.read_by_rounds(session, found, copies)
    people = undo_queries.judged_here(session, all_of_them, found.judgments)
    withdrawn = Counter(
        judgments=undo_queries.withdraw_judgments(session, found.judgments),
        comparisons=undo_queries.withdraw_comparisons(session, found.comparisons),
        demonstrations=undo_queries.withdraw_demonstrations(session, found.demonstrations, actor_id),
        thumbs=undo_queries.withdraw_thumbs(session, found.thumbs),
    )
    undo_queries.withdraw_copies(session, copies)
    withdrawn["prompts"] = undo_queries.withdraw_prompts(session, found.prompts)
    reopened = undo_queries.restore_overlaps(session, {int(id_): n for id_, n in found.overlaps.items()})
    settling.settle(session, reopened)
    found.undone_at, found.undone_by = func.now(), actor_id
    audit(session, actor_id, "data.import_undone", project.id, import_id=import_id, withdrawn=dict(withdrawn))
    session.flush()
    if withdrawn["judgments"]:
        # This also tells a round that is being frozen that the data it read is gone.
        fitting.refit(session, project)
    return Undone(withdrawn, people, len(found.prompts) - withdrawn["prompts"], rounds)
