"""Undoing an import: what it brought is withdrawn. Nothing is deleted, since models may have been trained on it."""

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
    """What was withdrawn. people: judgments that others gave on it, which count no more. kept: prompts that stay, since
    other work stands on them. rounds: those that had read some of it, and stay as they are.
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
    """How many live judgments an undo would take with it that the import did not bring."""
    found = undo_queries.locked(session, project.id, import_id)
    if found is None or found.undone_at is not None:
        return 0  # told by `undo`
    return undo_queries.judged_here(session, _with_copies(session, found), found.judgments)


def _with_copies(session: Session, found: DataImport) -> list[int]:
    return [*found.comparisons, *undo_queries.copies(session, found.comparisons)]


def undo(session: Session, project: Project, import_id: int, *, actor_id: int | None = None) -> Undone:
    """Withdraws the prompts, comparisons, judgments, demonstrations and thumbs that an import added.

    Comparisons that were there before are settled again by their other judgments, and all judgments of the project are
    fitted anew. Judgments that people gave on the import's own comparisons stay in the history and count no more. What
    these comparisons became goes with them: asked again under a newer rubric, calibration items, repeats. The same
    files can be imported again.

    Raises:
        NotFound: the project has no import of this number.
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
        # It also tells a round that is being frozen that what it has read is not there any more.
        fitting.refit(session, project)
    return Undone(withdrawn, people, len(found.prompts) - withdrawn["prompts"], rounds)
