"""Freezing what a round reads: a content-hashed file in the artifact store, and the row that names it."""

import gzip
import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from pydantic import BaseModel
from sqlalchemy.orm import Session

from app.artifacts import ArtifactStore
from app.domain.consensus import DIGITS, Consensus, consensus, majority, side, stored
from app.domain.replay import Candidate, Reading, choose, counts, draw
from app.domain.slices import of_prompt
from app.domain.thumbs import liked
from app.labelers import fitting
from app.models import Project, Prompt, Snapshot
from app.rounds import queries, thumb_queries
from app.rows import DemonstrationRow, PairRow, PromptRow, ThumbRow


class Readable(NamedTuple):
    """A decided comparison: what its being read depends on, its row of the query, and the labelers' consensus."""

    candidate: Candidate
    row: Any
    consensus: Consensus


def readable(session: Session, project: Project, *, texts: bool) -> list[Readable]:
    """Every comparison a round may read, in the order of their ids.

    A held-out prompt's comparisons are held out whatever they were asked for, so no held-out prompt is trained on.
    """
    found = []
    for row in queries.usable_comparisons(session, project.id, texts=texts):
        agreed = consensus(row.preferences, row.verdict, stored(row.consensus, row.p_b, row.p_tie))
        if agreed is None:  # settled without a judgment left: all were superseded
            continue
        split = "heldout" if row.heldout else "train"
        candidate = Candidate(row.id, split, agreed.winner, len(row.judgments), row.first_round)
        found.append(Readable(candidate, row, agreed))
    return found


def pair_row(found: Readable) -> PairRow:
    """A comparison as the trainer sees it."""
    row = found.row
    winner = found.consensus.winner
    sides = [side(preference) for preference in row.preferences]
    aspects: dict[str, list[int]] = {}
    for said in row.aspects:
        for name, preference in said.items():
            aspects.setdefault(name, []).append(preference)
    return PairRow(
        comparison_id=row.id,
        prompt_id=row.prompt_id,
        messages=tuple(row.messages),
        response_a=row.text_a,
        response_b=row.text_b,
        finished_a=row.finished_a,
        finished_b=row.finished_b,
        preference=found.consensus.preference,
        p_b=found.consensus.p_b,
        p_tie=found.consensus.p_tie,
        agreement=round(sides.count(winner) / len(sides), DIGITS) if sides else None,
        opposed=round(sides.count(-winner) / len(sides), DIGITS) if sides and winner else None,
        both_bad=round(row.both_bad, DIGITS),
        aspects={name: _of_aspect(said) for name, said in sorted(aspects.items())},
        ranking=row.ranking_id,
        weight=found.consensus.weight,
        judgments=tuple(row.judgments),
        rubric_version=row.rubric_version,
        split="heldout" if row.heldout else "train",
        slices=of_prompt(row.domain, row.difficulty, row.safety_category, row.prompt_split),
    )


def _of_aspect(said: list[int]) -> float:
    """p_b of an aspect; one half where nobody won, since a row has no p_tie by aspect."""
    found = majority(said).rounded()
    return 0.5 if found.is_tie else found.p_b


def would_read(session: Session, project: Project, reading: Reading) -> dict[str, Any]:
    """The counts of what `freeze` would write now."""
    candidates = [found.candidate for found in readable(session, project, texts=False)]
    return counts(choose(candidates, queries.trained_rounds(session, project.id), reading))


def freeze(session: Session, store: ArtifactStore, project: Project, reading: Reading = Reading()) -> Snapshot:
    """Writes the comparisons that the round reads to the store and adds the row that says so.

    What labelers say together is fitted anew before, over all their judgments.

    The file is in place before the row can be committed; one left by a rolled-back transaction harms nothing, since its
    name is its content's digest.

    Raises:
        StorageFull: the disk is full; nothing is left behind.
    """
    fitted = fitting.refit(session, project)
    found = readable(session, project, texts=True)
    chosen = choose([each.candidate for each in found], queries.trained_rounds(session, project.id), reading)
    ids = {candidate.comparison_id for candidate in chosen}
    rows = [pair_row(each) for each in found if each.candidate.comparison_id in ids]
    snapshot = _add_snapshot(session, store, project, rows, counts(chosen))
    snapshot.consensus = fitted.method
    queries.add_snapshot_comparisons(session, snapshot.id, sorted(ids))
    return snapshot


def demonstration_rows(session: Session, project: Project, reading: Reading) -> list[DemonstrationRow]:
    """The approved demonstrations that a round reads, as the trainer sees them; limits as for comparisons."""
    rows = [
        DemonstrationRow(
            id=found.id,
            messages=tuple(found.messages),
            response=found.text,
            split=found.split,
            slices=of_prompt(found.domain, found.difficulty, found.safety_category, found.split),
        )
        for found in queries.approved_demonstrations(session, project.id)
    ]
    limits = {"train": reading.train_limit, "heldout": reading.heldout_limit}
    kept = set().union(
        *(draw([row.id for row in rows if row.split == split], limit, reading.seed) for split, limit in limits.items())
    )
    return [row for row in rows if row.id in kept]


def demonstration_counts(rows: Sequence[DemonstrationRow]) -> dict[str, Any]:
    train = sum(row.split == "train" for row in rows)
    return {"train": train, "heldout": len(rows) - train, "demonstrations": len(rows)}


def freeze_demonstrations(
    session: Session, store: ArtifactStore, project: Project, reading: Reading = Reading()
) -> Snapshot:
    """As `freeze`, of the approved demonstrations."""
    rows = demonstration_rows(session, project, reading)
    snapshot = _add_snapshot(session, store, project, rows, demonstration_counts(rows))
    queries.add_snapshot_demonstrations(session, snapshot.id, [row.id for row in rows])
    return snapshot


class Liked(NamedTuple):
    """A response as the trainer sees it, and the thumbs that its row counts."""

    row: ThumbRow
    thumbs: list[int]


def thumb_rows(session: Session, project: Project) -> list[Liked]:
    """The responses to train prompts that most of their thumbs like or dislike."""
    rows = []
    for found in thumb_queries.thumbs(session, project.id):
        is_liked = liked(found.up, found.down)
        if is_liked is not None:
            row = ThumbRow(
                id=found.id,
                messages=tuple(found.messages),
                response=found.text,
                liked=is_liked,
                slices=of_prompt(found.domain, found.difficulty, found.safety_category, found.split),
            )
            rows.append(Liked(row, found.thumbs))
    return rows


def thumb_counts(found: Sequence[Liked]) -> dict[str, int]:
    up = sum(each.row.liked for each in found)
    return {"thumbs": len(found), "up": up, "down": len(found) - up}


def freeze_thumbs(session: Session, store: ArtifactStore, project: Project) -> Snapshot | None:
    """As `freeze`, of the thumbs; none where there are none."""
    found = thumb_rows(session, project)
    if not found:
        return None
    snapshot = _add_snapshot(session, store, project, [each.row for each in found], thumb_counts(found))
    thumb_queries.add_snapshot_thumbs(session, snapshot.id, [thumb for each in found for thumb in each.thumbs])
    return snapshot


def _add_snapshot(
    session: Session, store: ArtifactStore, project: Project, rows: Sequence[BaseModel], counted: dict[str, Any]
) -> Snapshot:
    digest, location = write_lines(store, "snapshots", rows, compressed=True)
    snapshot = Snapshot(project_id=project.id, digest=digest, location=location, counts=counted)
    session.add(snapshot)
    session.flush()
    return snapshot


def prompts_file(store: ArtifactStore, prompts: Iterable[Prompt]) -> str:
    """Writes prompts in the given order and returns the file's location."""
    rows = [
        PromptRow(
            id=p.id, messages=tuple(p.messages), slices=of_prompt(p.domain, p.difficulty, p.safety_category, p.split)
        )
        for p in prompts
    ]
    return write_lines(store, "prompts", rows, compressed=False)[1]


def write_lines(store: ArtifactStore, folder: str, rows: Iterable[BaseModel], *, compressed: bool) -> tuple[str, str]:
    """Writes rows as JSONL; returns the SHA-256 of the uncompressed lines and the location named after it."""
    content = "".join(row.model_dump_json() + "\n" for row in rows).encode()
    digest = hashlib.sha256(content).hexdigest()
    location = f"{folder}/{digest[:32]}.jsonl{'.gz' if compressed else ''}"
    with store.file(location) as path:  # also where it is already: what is there may have been damaged since
        # mtime=0: the same lines give the same bytes.
        path.write_bytes(gzip.compress(content, compresslevel=6, mtime=0) if compressed else content)
    return digest, location
