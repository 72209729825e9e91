"""A round's first stage: the worker fits the consensus, writes what the round reads, and records that.

A round reads what is there at this moment, and not when its start was pressed. Three transactions, so that nobody who
labels waits for a file:

1. `refit`: what labelers say together, over all their judgments.
2. Snapshots are written as of one moment. Nothing names them yet: a worker that dies here leaves nothing that counts.
3. `record`: the snapshots' rows and the end of the run appear together.

Somebody may take out what was read before it is recorded: remove a labeler, undo an import of judgments, change the
method of consensus (all of them fit again), or withdraw comparisons, demonstrations or thumbs. `record` sees that and
refuses, and the worker freezes once more.
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
    """Somebody took judgments out while the round was being frozen, so the files no longer match the database."""


class Frozen(NamedTuple):
    """What a round will read: files in the store, which no row names yet."""

    read: Written
    mixed: Written | None  # demonstrations that PPO mixes in
    thumbs: Written | None  # that KTO learns from
    at: datetime  # the moment that they show
    fitted: dict[str, Any] | None  # `project.fitted` at that moment
    seconds: float

    @property
    def files(self) -> list[Written]:
        return [file for file in (self.read, self.mixed, self.thumbs) if file]


def freeze(sessions: sessionmaker[Session], store: ArtifactStore, round_id: int, tick: Tick) -> Frozen:
    """Writes what a round reads.

    Args:
        tick: called after each row; what it raises ends the work and leaves nothing that counts.

    Raises:
        InvalidInput: that is too little to train on, or to learn aspects from.
        StorageFull: no room for it.
    """
    began = time.monotonic()
    with sessions.begin() as session:
        round_ = session.get_one(Round, round_id)
        if round_.algorithm != "sft":
            tick(0, 0, "weighing what labelers said")
            fitting.refit(session, session.get_one(Project, round_.project_id))
    bind = sessions.kw["bind"]
    assert isinstance(bind, Engine)
    with one_moment(bind) as session:
        tick(0, 0, "reading what is decided")
        written = write(session, store, session.get_one(Round, round_id), tick)
    return written._replace(seconds=time.monotonic() - began)


def write(session: Session, store: ArtifactStore, round_: Round, tick: Tick) -> Frozen:
    """The files of a round. Every statement of the session's transaction must see the same moment."""
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
    read = write_comparisons(session, store, project.id, found, tick)
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
    """Gives the round its snapshots and ends the run. The caller holds the run's row locked and commits.

    Raises:
        Changed: freeze again.
        Conflict: what was read has been deleted since.
    """
    project = session.get_one(Project, run.project_id, with_for_update=LOCK)
    assert run.round_id is not None, "only a round is frozen"
    round_ = session.get_one(Round, run.round_id, with_for_update=LOCK)
    withdrawn = (snapshot_queries.any_withdrawn(session, each.kind, each.ids) for each in frozen.files)
    if project.fitted != frozen.fitted or any(withdrawn):
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
