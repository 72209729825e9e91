"""The data that a round reads, as content-hashed files in the artifact store. Rows are streamed, never all in memory.

A file exists before a row refers to it. A file without a row does no harm: its name is the digest of its content, and
freezing the same data writes it again.
"""

import gzip
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel
from sqlalchemy.orm import Session

from app.artifacts import ArtifactStore
from app.domain.consensus import DIGITS, consensus, majority, side, stored
from app.domain.judges import panel
from app.domain.replay import Candidates, Reading, choose, counts, draw
from app.domain.slices import of_prompt
from app.domain.thumbs import liked
from app.judges import training_queries as judge_queries
from app.judges.training_queries import ForTraining
from app.models import Prompt, Snapshot
from app.rounds import snapshot_queries as queries
from app.rows import DemonstrationRow, PairRow, PromptRow, ThumbRow

Tick = Callable[[int, int, str], None]  # (done, total, message); may raise to stop the work


def silent(done: int, total: int, message: str) -> None:
    """Do nothing, for callers that report no progress."""


class Written(NamedTuple):
    """A snapshot's file, which no row refers to yet."""

    kind: Literal["comparisons", "demonstrations", "thumbs"]
    ids: Sequence[int]  # of the rows it holds
    counts: dict[str, Any]
    digest: str
    location: str
    judgments: tuple[int, ...] = ()  # of AI judges, beside the ids


# ---- comparisons -----------------------------------------------------------------------------------------------------


def chosen(session: Session, project_id: int, reading: Reading) -> Candidates:
    """Return the comparisons that a round would read now."""
    return choose(queries.candidates(session, project_id), queries.trained_rounds(session, project_id), reading)


def write_comparisons(
    session: Session,
    store: ArtifactStore,
    project_id: int,
    found: Candidates,
    tick: Tick = silent,
    by_judges: Sequence[ForTraining] = (),
) -> Written:
    """Write comparisons as the trainer reads them, with the stored consensus; after them those of AI judges.

    If labelers rated aspects, the snapshot's counts also say how many train comparisons each aspect decides.

    Args:
        session: in a transaction that sees the same data as `chosen`.
        by_judges: train comparisons that only admitted judges judged.

    Raises:
        StorageFull: the disk is full; nothing is left behind.
    """
    ids = found.comparison.tolist()
    aspects: Counter[str] = Counter()
    revised = 0

    def rows() -> Iterator[PairRow]:
        nonlocal revised
        for n, each in enumerate(queries.comparisons(session, project_id, ids), 1):
            row = pair_row(each)
            revised += bool(row.ai_revised)
            if row.split == "train":
                aspects.update(name for name, p_b in row.aspects.items() if p_b != 0.5)
            yield row
            tick(n, len(ids), "writing comparisons")
        judged = {each.comparison: each for each in by_judges}
        for n, each in enumerate(queries.comparisons(session, project_id, list(judged)), 1):
            yield judged_row(each, judged[each.id])
            tick(n, len(judged), "writing comparisons of AI judges")

    digest, location = write_lines(store, "snapshots", rows(), compressed=True)
    said = counts(found) | ({"aspects": dict(aspects)} if aspects else {})
    if revised:
        said["ai_revised"] = revised
    if by_judges:
        said["ai"] = len(by_judges)
    judgments = tuple(id_ for each in by_judges for id_ in each.judgments)
    return Written("comparisons", ids, said, digest, location, judgments)


def judged_row(row: Any, said: ForTraining) -> PairRow:
    """A comparison that nobody but AI judges judged, as the trainer sees it: marked as theirs."""
    together = panel(said.verdicts)
    return PairRow(
        comparison_id=row.id,
        prompt_id=row.prompt_id,
        messages=tuple(row.messages),
        response_a=row.text_a,
        response_b=row.text_b,
        finished_a=row.finished_a,
        finished_b=row.finished_b,
        preference=together.side,
        p_b=round(together.p_b, DIGITS),
        p_tie=round(together.p_tie, DIGITS),
        source="ai",
        judges=tuple(sorted(said.judgments)),
        ai_revised=_revised(row),
        rubric_version=row.rubric_version,
        split="train",
        slices=of_prompt(row.domain, row.difficulty, row.safety_category, row.prompt_split),
    )


def pair_row(row: Any) -> PairRow:
    """Return a comparison as the trainer reads it, from a row of `snapshot_queries.comparisons`."""
    agreed = consensus(row.preferences, row.verdict, stored(row.consensus, row.p_b, row.p_tie))
    assert agreed is not None, "nothing is chosen on which nobody has said anything"
    winner = agreed.winner
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
        preference=agreed.preference,
        p_b=agreed.p_b,
        p_tie=agreed.p_tie,
        agreement=round(sides.count(winner) / len(sides), DIGITS) if sides else None,
        opposed=round(sides.count(-winner) / len(sides), DIGITS) if sides and winner else None,
        both_bad=round(row.both_bad, DIGITS),
        aspects={name: _of_aspect(said) for name, said in sorted(aspects.items())},
        ranking=row.ranking_id,
        weight=agreed.weight,
        judgments=tuple(row.judgments),
        ai_revised=_revised(row),
        rubric_version=row.rubric_version,
        split="heldout" if row.heldout else "train",
        slices=of_prompt(row.domain, row.difficulty, row.safety_category, row.prompt_split),
    )


def _revised(row: Any) -> tuple[Literal["a", "b"], ...]:
    """Return the sides whose response is an AI critic's revision."""
    sides: tuple[tuple[Literal["a", "b"], bool], ...] = (("a", row.ai_revised_a), ("b", row.ai_revised_b))
    return tuple(name for name, is_revised in sides if is_revised)


def _of_aspect(said: list[int]) -> float:
    """Return p_b of an aspect; one half for a tie, because a row has no p_tie by aspect."""
    found = majority(said).rounded()
    return 0.5 if found.is_tie else found.p_b


# ---- demonstrations and thumbs ---------------------------------------------------------------------------------------


def demonstration_counts(approved: dict[str, int], reading: Reading) -> dict[str, int]:
    """Return how many of the approved demonstrations a round reads, by split; limits as for comparisons."""
    limits = {"train": reading.train_limit, "heldout": reading.heldout_limit}
    found = {split: approved.get(split, 0) for split in limits}
    read = {split: n if (limit := limits[split]) is None else min(n, limit) for split, n in found.items()}
    return read | {"demonstrations": sum(read.values())}


def write_demonstrations(
    session: Session, store: ArtifactStore, project_id: int, reading: Reading = Reading(), tick: Tick = silent
) -> Written:
    """Write the approved demonstrations, like `write_comparisons`."""
    found = queries.approved(session, project_id)
    limits = {"train": reading.train_limit, "heldout": reading.heldout_limit}
    drawn = [
        draw(np.array([row.id for row in found if row.split == split], np.int64), limit, reading.seed)
        for split, limit in limits.items()
    ]
    ids = np.sort(np.concatenate(drawn)).tolist()

    revised = 0

    def rows() -> Iterator[DemonstrationRow]:
        nonlocal revised
        for n, row in enumerate(queries.demonstrations(session, project_id, ids), 1):
            revised += row.ai_revised
            yield DemonstrationRow(
                id=row.id,
                messages=tuple(row.messages),
                response=row.text,
                ai_revised=row.ai_revised,
                split=row.split,
                slices=of_prompt(row.domain, row.difficulty, row.safety_category, row.split),
            )
            tick(n, len(ids), "writing demonstrations")

    said = demonstration_counts(Counter(row.split for row in found), reading)
    digest, location = write_lines(store, "snapshots", rows(), compressed=True)
    return Written("demonstrations", ids, said | ({"ai_revised": revised} if revised else {}), digest, location)


def thumb_counts(up: int, down: int) -> dict[str, int]:
    return {"thumbs": up + down, "up": up, "down": down}


def write_thumbs(session: Session, store: ArtifactStore, project_id: int, tick: Tick = silent) -> Written | None:
    """Write the responses with more thumbs up than down or the reverse, like `write_comparisons`; None if there are
    none."""
    if not any(queries.count_thumbs(session, project_id)):
        return None
    ids: list[int] = []
    said: Counter[bool] = Counter()

    def rows() -> Iterator[ThumbRow]:
        for row in queries.thumbs(session, project_id):
            is_liked = liked(row.up, row.down)
            if is_liked is None:
                continue
            ids.extend(row.thumbs)
            said[is_liked] += 1
            yield ThumbRow(
                id=row.id,
                messages=tuple(row.messages),
                response=row.text,
                ai_revised=row.ai_revised,
                liked=is_liked,
                slices=of_prompt(row.domain, row.difficulty, row.safety_category, row.split),
            )
            tick(said.total(), 0, "writing responses with thumbs")

    digest, location = write_lines(store, "snapshots", rows(), compressed=True)
    return Written("thumbs", ids, thumb_counts(said[True], said[False]), digest, location)


# ---- files and rows --------------------------------------------------------------------------------------------------


def add_snapshot(
    session: Session, project_id: int, written: Written, at: datetime, consensus_: str | None = None
) -> Snapshot:
    """Add the row that refers to a snapshot's file.

    Args:
        at: the moment that its data is from.
        consensus_: the method of its posteriors.
    """
    snapshot = Snapshot(
        project_id=project_id,
        digest=written.digest,
        location=written.location,
        counts=written.counts,
        consensus=consensus_,
        created_at=at,
    )
    session.add(snapshot)
    session.flush()
    queries.add_held(session, snapshot, written.kind, written.ids)
    if written.judgments:
        judge_queries.add_held(session, snapshot.id, written.judgments)
    return snapshot


def prompts_file(store: ArtifactStore, prompts: Iterable[Prompt]) -> str:
    """Write prompts in the given order and return the file's location."""
    rows = (
        PromptRow(
            id=p.id, messages=tuple(p.messages), slices=of_prompt(p.domain, p.difficulty, p.safety_category, p.split)
        )
        for p in prompts
    )
    return write_lines(store, "prompts", rows, compressed=False)[1]


def write_lines(store: ArtifactStore, folder: str, rows: Iterable[BaseModel], *, compressed: bool) -> tuple[str, str]:
    """Write rows as JSONL, one at a time; return the SHA-256 of the uncompressed lines, and the location named after
    it."""
    sha = hashlib.sha256()
    ending = f".jsonl{'.gz' if compressed else ''}"

    def location() -> str:
        return f"{folder}/{sha.hexdigest()[:32]}{ending}"

    # Even if the file exists, because it may have been damaged.
    with (
        store.named_file(f"rows{ending}", location) as path,
        path.open("wb") as raw,
        # No name or time inside: the same lines give the same bytes.
        gzip.GzipFile("", "wb", 6, raw, mtime=0) if compressed else raw as file,
    ):
        for row in rows:
            line = row.model_dump_json().encode() + b"\n"
            sha.update(line)
            file.write(line)
    return sha.hexdigest(), location()
