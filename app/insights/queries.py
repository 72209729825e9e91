"""SQL of the agreement page: all judgments as arrays, the live counts, and names."""

from collections.abc import Collection
from functools import reduce
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import (
    ColumnElement,
    LargeBinary,
    SmallInteger,
    and_,
    cast,
    exists,
    func,
    literal,
    select,
)
from sqlalchemy.orm import Session

from app.db import among
from app.domain.agreement_table import NOT_SAID, Judgments, Tags
from app.models import AgreementTally, Comparison, Judgment, Prompt, Ranking, Round, Rubric, User

# comparisons whose judgments are returned as one value, because PostgreSQL limits a value to a gigabyte
CHUNK = 500_000
MONDAY = 2  # 2000-01-03, in days since PostgreSQL's epoch
DAY = 86_400_000_000  # microseconds
# a repeat would compare a labeler with themselves
COUNTS = and_(Comparison.state != "withdrawn", Comparison.purpose != "repeat")


def judgments(session: Session, project_id: int, kinds: Collection[str], aspects: Collection[str]) -> Judgments:
    """Return the live judgments with a preference by labelers of these kinds, without withdrawn comparisons and
    repeats.

    Numbers are fetched as packed bytes: building a million rows of Python objects would take longer than everything
    after.
    """
    # Hash groups instead of sorting them on disk; JIT compilation would take longer than it saves.
    local = {"work_mem": "128MB", "enable_sort": "off", "jit": "off"}
    session.execute(select(*(func.set_config(name, value, True) for name, value in local.items())))
    said = _said(session, project_id, kinds, aspects)
    tags, ties, comparison, tag, ranking = _tagged(session, project_id)
    # A judgment taken back between the two reads can leave a comparison only in the first one.
    is_tagged = np.isin(said["comparison"], comparison)
    if not is_tagged.all():
        said = {name: column[is_tagged] for name, column in said.items()}
    at = np.searchsorted(comparison, said["comparison"])
    return Judgments(
        has_tie=scales(session, project_id).has_tie,
        tags=tags,
        ties=ties,
        tag=tag[at],
        comparison=said["comparison"],
        ranking=ranking[at],
        labeler=said["labeler"],
        week=(said["at"] // DAY - MONDAY) // 7,
        preference=said["preference"],
        aspects={name: said["aspects"][:, i] for i, name in enumerate(aspects)},
    )


def _said(
    session: Session, project_id: int, kinds: Collection[str], aspects: Collection[str]
) -> dict[str, NDArray[np.int64]]:
    """Return the judgments' columns."""
    numbers = [("comparison", ">i8"), ("labeler", ">i8"), ("at", ">i8"), ("preference", ">i2")]
    record = np.dtype([*numbers, ("aspects", ">i2", len(aspects))])
    packed: list[ColumnElement[bytes]] = [
        func.int8send(Judgment.comparison_id, type_=LargeBinary),
        func.int8send(Judgment.labeler_id),
        func.timestamptz_send(Judgment.created_at),
        func.int2send(Judgment.preference),
    ]
    for name in aspects:
        answer = func.coalesce(Judgment.aspects[name].as_integer(), NOT_SAID)
        packed.append(func.int2send(cast(answer, SmallInteger)))
    joined = reduce(lambda left, right: left.op("||")(right), packed)
    found = (
        select(func.string_agg(joined, literal(b"", LargeBinary)))
        .join(Comparison, Comparison.id == Judgment.comparison_id)
        .join(User, User.id == Judgment.labeler_id)
        .where(Comparison.project_id == project_id, COUNTS, User.kind.in_(kinds))
        .where(Judgment.superseded_at.is_(None), Judgment.preference.is_not(None))
        .group_by(Comparison.id // CHUNK)
    )
    all_ = np.frombuffer(b"".join(session.scalars(found)), dtype=record)
    return {name: all_[name].astype(np.int64) for name in record.fields or ()}


def _tagged(
    session: Session, project_id: int
) -> tuple[list[Tags], NDArray[np.bool_], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return combinations of tags, and whether each allows ties; ids of comparisons, ascending, with their combination
    and ranking."""
    columns = (
        func.coalesce(Rubric.version, 0),
        Prompt.domain,
        Prompt.difficulty,
        func.coalesce(Prompt.safety_category, ""),
        Prompt.split,
        Comparison.purpose,
        func.coalesce(Round.number, 0),
        Rubric.allow_tie | Rubric.allow_both_bad,
    )
    packed = func.int8send(Comparison.id, type_=LargeBinary).op("||")(
        func.int8send(func.coalesce(Comparison.ranking_id, 0))
    )
    found = (
        select(*columns, func.string_agg(packed, literal(b"", LargeBinary), type_=LargeBinary))
        .join(Prompt, Prompt.id == Comparison.prompt_id)
        .join(Rubric, Rubric.id == Comparison.rubric_id)
        .outerjoin(Round, Round.id == Comparison.round_id)
        .where(Comparison.project_id == project_id, Comparison.judgment_count > 0)
        .group_by(*columns)
    )
    rows = session.execute(found).all()
    tags = [Tags(*("" if value == 0 else str(value) for value in row[:-2])) for row in rows]
    ids, ranking = np.frombuffer(b"".join(row[-1] for row in rows), dtype=">i8").astype(np.int64).reshape(-1, 2).T
    tag = np.repeat(np.arange(len(rows)), [len(row[-1]) // 16 for row in rows])
    order = np.argsort(ids)
    return tags, np.array([row[-2] for row in rows], dtype=bool), ids[order], tag[order], ranking[order]


def has_rankings(session: Session, project_id: int) -> bool:
    return bool(session.scalar(select(exists().where(Ranking.project_id == project_id))))


class Tally(NamedTuple):
    """Number of comparisons that have exactly these answers: see app.models.AgreementTally."""

    answers: list[int]
    n: int


def tally(session: Session, project_id: int) -> list[Tally]:
    """Return the patterns of answers that currently occur in the project."""
    n = func.sum(AgreementTally.n)
    found = select(AgreementTally.answers, n).where(AgreementTally.project_id == project_id)
    rows = session.execute(found.group_by(AgreementTally.answers).having(n != 0).order_by(AgreementTally.answers))
    return [Tally(answers, int(count)) for answers, count in rows]


class Scales(NamedTuple):
    """What the project's published rubrics ask for."""

    has_tie: bool
    strengths: int  # of the widest scale
    aspects: list[str]


def scales(session: Session, project_id: int) -> Scales:
    published = (Rubric.project_id == project_id, Rubric.version.is_not(None))
    columns = select(Rubric.allow_tie | Rubric.allow_both_bad, Rubric.strengths, Rubric.aspects)
    rows = session.execute(columns.where(*published).order_by(Rubric.version)).all()
    names = [aspect["name"] for *_, aspects in rows for aspect in aspects]
    return Scales(
        has_tie=any(has_tie for has_tie, *_ in rows),
        strengths=max((strengths for _, strengths, _ in rows), default=1),
        aspects=list(dict.fromkeys(names)),
    )


def labelers(session: Session, ids: Collection[int]) -> dict[int, tuple[str, str]]:
    """Return (name, kind) by labeler id."""
    wanted = among(User.id, ids)
    return {
        id_: (name, kind) for id_, name, kind in session.execute(select(User.id, User.name, User.kind).where(wanted))
    }
