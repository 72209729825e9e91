"""A round's first stage: the worker fits the consensus, writes the data that the round reads, and records it.

A round reads the data of this moment, not of the moment when somebody pressed Start. Three transactions keep labelers
from waiting while files are written:

1. `refit` fits the consensus over all judgments.
2. Snapshots are written as of one moment. No row refers to them yet, so if the worker dies here, the files are ignored.
3. `record` adds the snapshots' rows and ends the run in one transaction.

Before `record`, somebody may take out data that was read. They may remove a labeler, undo an import of judgments or
change the consensus method, which all cause a new fit. They may also withdraw comparisons, demonstrations or thumbs, or
switch off an AI judge. `record` notices that and refuses, and the worker freezes once more.
"""

import time
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Engine
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, sessionmaker

from app.artifacts import ArtifactStore
from app.audit import audit
from app.db import one_moment
from app.domain.replay import counts as counts_of
from app.errors import Conflict
from app.judges import service as judges
from app.judges import training_queries as judge_queries
from app.labelers import fitting
from app.models import Project, Round, Run
from app.rounds import snapshot_queries
from app.rounds.forms import RoundConfig
from app.rounds.readiness import lacks, reads_thumbs
from app.rounds.runs import LOCK, run_finished
from app.rounds.snapshots import (
    Tick,
    Written,
    add_snapshot,
    chosen,
    write_comparisons,
    write_demonstrations,
    write_thumbs,
)
from app.rounds.stages import decided_aspects
from app.settings import SamplingServer


class Changed(Exception):
    """Somebody took out judgments while the round was being frozen, so the files no longer match the database."""


class Frozen(NamedTuple):
    """What a round will read: files in the store that no row refers to yet."""

    read: Written
    mixed: Written | None  # demonstrations that PPO mixes in
    thumbs: Written | None  # thumbs that KTO learns from
    at: datetime  # the moment that the data is from
    fitted: dict[str, Any] | None  # `project.fitted` at that moment
    seconds: float

    @property
    def files(self) -> list[Written]:
        return [file for file in (self.read, self.mixed, self.thumbs) if file]


def freeze(sessions: sessionmaker[Session], store: ArtifactStore, round_id: int, tick: Tick) -> Frozen:
    """Write the data that a round reads.

    Args:
        tick: called after each row; an exception from it stops the work, and nothing that counts is left behind.

    Raises:
        InvalidInput: too little to train on, or to learn aspects from.
        StorageFull: the disk is full.
    """
    began = time.monotonic()
    with sessions.begin() as session:
        round_ = session.get_one(Round, round_id)
        if round_.algorithm != "sft":
            tick(0, 0, "weighing what labelers said")
            fitting.refit(session, session.get_one(Project, round_.project_id))
            judges.look(session, round_.project_id)
    bind = sessions.kw["bind"]
    assert isinstance(bind, Engine)
    with one_moment(bind) as session:
        tick(0, 0, "reading what is decided")
        written = write(session, store, session.get_one(Round, round_id), tick)
    return written._replace(seconds=time.monotonic() - began)


def write(session: Session, store: ArtifactStore, round_: Round, tick: Tick) -> Frozen:
    """Write the files of a round. All statements in the session's transaction must see the same moment."""
    config = RoundConfig.of(round_.config)
    project = session.get_one(Project, round_.project_id)
    at = snapshot_queries.moment(session)
    if config.algorithm == "sft":
        read = write_demonstrations(session, store, project.id, config.reading, tick)
        _require_enough(config, read.counts, 0)
        return Frozen(read, None, None, at, project.fitted, 0.0)
    found = chosen(session, project.id, config.reading)
    mixed = write_demonstrations(session, store, project.id, tick=tick) if config.ptx else None
    _require_enough(config, counts_of(found), mixed.counts["train"] if mixed else 0)
    by_judges = judges.for_training(
        session, project.id, config.ai_share, counts_of(found)["train"], config.reading.seed
    )
    read = write_comparisons(session, store, project.id, found, tick, by_judges)
    if config.reward_aspects:
        decided_aspects(read.counts)
    thumbs = write_thumbs(session, store, project.id, tick) if reads_thumbs(config) else None
    return Frozen(read, mixed, thumbs, at, project.fitted, 0.0)


def _require_enough(config: RoundConfig, counts: dict[str, Any], demonstrations: int) -> None:
    if lacking := lacks(config, counts, demonstrations):
        raise lacking


def record(
    session: Session, store: ArtifactStore, run: Run, frozen: Frozen, server: SamplingServer | None = None
) -> None:
    """Set the round's snapshots and end the run. The caller holds the run's row locked and commits.

    Raises:
        Changed: the data changed; freeze again.
        Conflict: data that was read has been deleted since.
    """
    project = session.get_one(Project, run.project_id, with_for_update=LOCK)
    assert run.round_id is not None, "only a round is frozen"
    round_ = session.get_one(Round, run.round_id, with_for_update=LOCK)
    withdrawn = (snapshot_queries.any_withdrawn(session, each.kind, each.ids) for each in frozen.files)
    if project.fitted != frozen.fitted or any(withdrawn):
        raise Changed
    if judge_queries.any_withdrawn(session, project.id, frozen.read.judgments):
        raise Changed
    fitted = fitting.last_fit(project)
    method = fitted.method if fitted and frozen.read.kind == "comparisons" else None
    try:
        with session.begin_nested():
            snapshot = add_snapshot(session, project.id, frozen.read, frozen.at, method)
            round_.snapshot_id = snapshot.id
            if frozen.mixed:
                round_.ptx_snapshot_id = add_snapshot(session, project.id, frozen.mixed, frozen.at).id
            if frozen.thumbs:
                round_.thumbs_snapshot_id = add_snapshot(session, project.id, frozen.thumbs, frozen.at).id
    except IntegrityError as error:
        raise Conflict(
            "Data that the round reads was deleted while it was being frozen, most likely because an import was "
            "undone.",
            "Retry the round. It reads the remaining data.",
        ) from error
    audit(session, None, "round.frozen", project.id, number=round_.number, snapshot=snapshot.digest)
    result = {"read": len(frozen.read.ids), "seconds": round(frozen.seconds, 1)}
    run_finished(session, store, run, result, server=server)
