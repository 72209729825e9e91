"""Freezing what a round reads: a content-hashed file in the artifact store, and the row that names it."""

import gzip
import hashlib
import random
from collections.abc import Iterable

from pydantic import BaseModel
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.artifacts import ArtifactStore
from app.domain.consensus import consensus
from app.domain.slices import of_prompt
from app.models import Project, Prompt, Snapshot
from app.rounds import queries
from app.specs import PairRow, PromptRow


def pair_rows(session: Session, project: Project) -> list[PairRow]:
    """Every settled or adjudicated comparison as the trainer will see it, in the order of their ids.

    A held-out prompt's comparisons are held out whatever they were asked for, so no held-out prompt is trained on.
    """
    rows = []
    for found in queries.usable_comparisons(session, project.id):
        agreed = consensus(found.preferences, found.verdict)
        if agreed is None:  # settled without a judgment left: all were superseded
            continue
        tags = of_prompt(found.domain, found.difficulty, found.safety_category, found.prompt_split)
        rows.append(
            PairRow(
                comparison_id=found.id,
                prompt_id=found.prompt_id,
                messages=tuple(found.messages),
                response_a=found.text_a,
                response_b=found.text_b,
                finished_a=found.finished_a,
                finished_b=found.finished_b,
                preference=agreed.preference,
                p_b=agreed.p_b,
                weight=agreed.weight,
                judgments=tuple(found.judgments),
                rubric_version=found.rubric_version,
                split="heldout" if found.heldout else "train",
                slices=tags,
            )
        )
    return rows


def draw(rows: list[PairRow], limits: dict[str, int | None], seed: int) -> list[PairRow]:
    """At most `limits[split]` rows of each split, chosen at random by the seed, in their old order."""
    kept: set[int] = set()
    for split, limit in limits.items():
        ids = [row.comparison_id for row in rows if row.split == split]
        kept.update(ids if limit is None or len(ids) <= limit else random.Random(seed).sample(ids, limit))
    return [row for row in rows if row.comparison_id in kept]


def freeze(
    session: Session,
    store: ArtifactStore,
    project: Project,
    *,
    train_limit: int | None = None,
    heldout_limit: int | None = None,
    seed: int = 0,
) -> Snapshot:
    """Writes the project's usable comparisons to the store and returns the snapshot's row (an equal one is reused).

    With a limit, that many of the split, chosen at random by the seed.

    The file is in place before the row can be committed; one left by a rolled-back transaction harms nothing, since its
    name is its content's digest.

    Raises:
        StorageFull: the disk is full; nothing is left behind.
    """
    rows = draw(pair_rows(session, project), {"train": train_limit, "heldout": heldout_limit}, seed)
    digest, location = write_lines(store, "snapshots", rows, compressed=True)
    same = select(Snapshot).where(Snapshot.project_id == project.id, Snapshot.digest == digest)
    snapshot = session.scalars(same).one_or_none()
    if snapshot is None:
        snapshot = Snapshot(project_id=project.id, digest=digest, location=location, counts=_counts(rows))
        session.add(snapshot)
        session.flush()
    return snapshot


def _counts(rows: list[PairRow]) -> dict[str, int]:
    return {
        "train": sum(row.split == "train" for row in rows),
        "heldout": sum(row.split == "heldout" for row in rows),
        "ties": sum(row.p_b == 0.5 for row in rows),
        "winners": sum(row.split == "train" and row.p_b != 0.5 for row in rows),
        "judgments": sum(len(row.judgments) for row in rows),
    }


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
    if not store.exists(location):
        with store.file(location) as path:
            # mtime=0: the same lines give the same bytes.
            path.write_bytes(gzip.compress(content, compresslevel=6, mtime=0) if compressed else content)
    return digest, location
