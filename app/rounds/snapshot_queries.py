"""SQL of the data that rounds read: counting it, streaming it into snapshots, and recording what was read.

Streams use a server-side cursor, so at most a few hundred rows are in memory at a time.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Integer,
    Select,
    case,
    cast,
    exists,
    func,
    insert,
    literal,
    literal_column,
    or_,
    select,
)
from sqlalchemy.dialects.postgresql import aggregate_order_by
from sqlalchemy.orm import Session, aliased

from app.columns import read_columns
from app.db import among
from app.domain.replay import Candidates
from app.models import (
    Adjudication,
    Comparison,
    Completion,
    Demonstration,
    Judgment,
    Prompt,
    Round,
    Rubric,
    Snapshot,
    SnapshotComparison,
    SnapshotDemonstration,
    SnapshotThumb,
    Thumb,
)
from app.models.comparison import WINNER
from app.rounds.model_queries import current_line

AT_ONCE = 500  # rows fetched together
PURPOSES = ("train", "heldout")
# What a round may read. Repeats and calibration items measure labelers, not responses. Comparisons between policies are
# left out completely, even for choosing between checkpoints, because they judge the result.
_USABLE = (
    Comparison.state.in_(("settled", "adjudicated")),
    Comparison.purpose.in_(PURPOSES),
    Prompt.split.in_(("train", "heldout")),
)
# All comparisons on a held-out prompt are held out, whatever their purpose: no held-out prompt is trained on.
_HELDOUT = or_(Prompt.split == "heldout", Comparison.purpose == "heldout")
# Judgments without a preference do not count.
_SAYS = (Judgment.superseded_at.is_(None), Judgment.preference.is_not(None))
_WINNER = case((Adjudication.verdict.is_not(None), func.sign(Adjudication.verdict)), else_=literal_column(WINNER))


def moment(session: Session) -> datetime:
    """Return when the session's transaction began."""
    return session.scalars(select(func.now())).one()


def _stream(session: Session, query: Select[*tuple[Any, ...]]) -> Iterator[Any]:
    return iter(session.execute(query.execution_options(yield_per=AT_ONCE)))


# ---- comparisons -----------------------------------------------------------------------------------------------------


def candidates(session: Session, project_id: int) -> Candidates:
    """Return every comparison that a round may read, by id, with the winner from the stored consensus.

    A single statement, so that all data is from one moment.
    """
    asked = aliased(Comparison)
    said = (
        select(Judgment.comparison_id, func.count().label("n"))
        .join(asked, asked.id == Judgment.comparison_id)
        .where(asked.project_id == project_id, *_SAYS)
        .group_by(Judgment.comparison_id)
        .subquery()
    )
    read = (
        select(SnapshotComparison.comparison_id, func.min(Round.number).label("first_round"))
        .join(Round, Round.snapshot_id == SnapshotComparison.snapshot_id)
        .where(*_trained(project_id))
        .group_by(SnapshotComparison.comparison_id)
        .subquery()
    )
    query = (
        select(
            Comparison.id.label("comparison"),
            cast(cast(_HELDOUT, Integer), BigInteger).label("heldout"),
            cast(_WINNER, BigInteger).label("winner"),
            cast(func.coalesce(said.c.n, 0), BigInteger).label("judgments"),
            cast(func.coalesce(read.c.first_round, 0), BigInteger).label("first_round"),
        )
        .join(Prompt, Prompt.id == Comparison.prompt_id)
        .outerjoin(Adjudication, Adjudication.comparison_id == Comparison.id)
        .outerjoin(said, said.c.comparison_id == Comparison.id)
        .outerjoin(read, read.c.comparison_id == Comparison.id)
        .where(Comparison.project_id == project_id, *_USABLE)
        # Without a live judgment or a verdict, a settled comparison has no information.
        .where(or_(Adjudication.verdict.is_not(None), said.c.n > 0))
        .order_by(Comparison.id)
    )
    return Candidates(**read_columns(session, query))


def count_winners(session: Session, project_id: int, at_most: int, *, only_new: bool) -> int:
    """Count train comparisons with a winner, by the stored consensus, up to `at_most`.

    Args:
        only_new: count only comparisons that the policy has not learned from yet.
    """
    says = exists().where(Judgment.comparison_id == Comparison.id, *_SAYS)
    query = (
        select(Comparison.id)
        .join(Prompt, Prompt.id == Comparison.prompt_id)
        .outerjoin(Adjudication, Adjudication.comparison_id == Comparison.id)
        .where(Comparison.project_id == project_id, *_USABLE, ~_HELDOUT, _WINNER != 0)
        .where(or_(Adjudication.verdict.is_not(None), says))
    )
    if only_new:
        read = select(SnapshotComparison.comparison_id).join(Round, Round.snapshot_id == SnapshotComparison.snapshot_id)
        query = query.where(
            ~read.where(SnapshotComparison.comparison_id == Comparison.id, *_trained(project_id)).exists()
        )
    return session.scalar(select(func.count()).select_from(query.limit(at_most).subquery())) or 0


def comparisons(session: Session, project_id: int, ids: Sequence[int]) -> Iterator[Any]:
    """Stream these comparisons of the project by id: texts, live judgments and verdict."""
    a, b = aliased(Completion), aliased(Completion)
    live = (
        select(
            Judgment.comparison_id,
            func.array_agg(aggregate_order_by(Judgment.id, Judgment.id)).label("judgments"),
            func.array_agg(aggregate_order_by(cast(Judgment.preference, Integer), Judgment.id)).label("preferences"),
            func.avg(cast(Judgment.both_bad, Integer)).label("both_bad"),
            func.jsonb_agg(Judgment.aspects).filter(Judgment.aspects != {}).label("aspects"),
        )
        .where(among(Judgment.comparison_id, ids), *_SAYS)
        .group_by(Judgment.comparison_id)
        .subquery()
    )
    query = (
        select(
            Comparison.id,
            Adjudication.verdict,
            func.coalesce(live.c.judgments, []).label("judgments"),
            func.coalesce(live.c.preferences, []).label("preferences"),
            Comparison.consensus,
            Comparison.p_b,
            Comparison.p_tie,
            _HELDOUT.label("heldout"),
            Comparison.prompt_id,
            Comparison.ranking_id,
            func.coalesce(live.c.both_bad, 0).label("both_bad"),
            func.coalesce(live.c.aspects, []).label("aspects"),
            Prompt.messages,
            Prompt.split.label("prompt_split"),
            Prompt.domain,
            Prompt.difficulty,
            Prompt.safety_category,
            a.text.label("text_a"),
            b.text.label("text_b"),
            func.coalesce(a.finish_reason != "length", True).label("finished_a"),
            func.coalesce(b.finish_reason != "length", True).label("finished_b"),
            a.ai_revised.label("ai_revised_a"),
            b.ai_revised.label("ai_revised_b"),
            Rubric.version.label("rubric_version"),
        )
        .join(Prompt, Prompt.id == Comparison.prompt_id)
        .join(a, a.id == Comparison.completion_a_id)
        .join(b, b.id == Comparison.completion_b_id)
        .join(Rubric, Rubric.id == Comparison.rubric_id)
        .outerjoin(Adjudication, Adjudication.comparison_id == Comparison.id)
        .outerjoin(live, live.c.comparison_id == Comparison.id)
        .where(Comparison.project_id == project_id, among(Comparison.id, ids))
        .order_by(Comparison.id)
    )
    return _stream(session, query)


def _trained(project_id: int) -> tuple[ColumnElement[bool], ...]:
    """Conditions on rounds that the project's policy has learned from: they made it or one of its ancestors."""
    line = current_line(project_id)
    return Round.project_id == project_id, Round.algorithm != "sft", Round.policy_after_id.in_(select(line.c.id))


def trained_rounds(session: Session, project_id: int) -> list[int]:
    """Return numbers of the rounds whose comparisons the policy has learned from: see `_trained`."""
    return list(session.scalars(select(Round.number).where(*_trained(project_id)).order_by(Round.number)))


# ---- demonstrations and thumbs ---------------------------------------------------------------------------------------


def _approved(project_id: int, *columns: Any) -> Select[Any]:
    return (
        select(Demonstration.id, Prompt.split, *columns)
        .join(Prompt, Prompt.id == Demonstration.prompt_id)
        .where(
            Demonstration.project_id == project_id,
            Demonstration.state == "approved",
            Prompt.split.in_(("train", "heldout")),
        )
        .order_by(Demonstration.id)
    )


def approved(session: Session, project_id: int) -> Sequence[Any]:
    """Return (id, prompt's split) of approved demonstrations on train and held-out prompts, by id."""
    return session.execute(_approved(project_id)).all()


def count_approved(session: Session, project_id: int) -> dict[str, int]:
    """Count approved demonstrations by their prompt's split: train and heldout."""
    found = _approved(project_id).order_by(None).subquery()
    return dict(session.execute(select(found.c.split, func.count()).group_by(found.c.split)).all())


def demonstrations(session: Session, project_id: int, ids: Sequence[int]) -> Iterator[Any]:
    """Stream these approved demonstrations by id, with the prompt's messages and tags."""
    columns = (Demonstration.text, Demonstration.ai_revised, Prompt.messages)
    tags = (Prompt.domain, Prompt.difficulty, Prompt.safety_category)
    return _stream(session, _approved(project_id, *columns, *tags).where(among(Demonstration.id, ids)))


def _given(project_id: int) -> Select[*tuple[Any, ...]]:
    """Select live thumbs by response: how many up and down, and their ids."""
    return (
        select(
            Thumb.completion_id,
            func.count().filter(Thumb.liked).label("up"),
            func.count().filter(~Thumb.liked).label("down"),
            func.array_agg(aggregate_order_by(Thumb.id, Thumb.id)).label("thumbs"),
        )
        .where(Thumb.project_id == project_id, Thumb.superseded_at.is_(None))
        .group_by(Thumb.completion_id)
    )


def count_thumbs(session: Session, project_id: int) -> Any:
    """Count responses to train prompts with more thumbs up than down (`up`), and with more down (`down`)."""
    given = _given(project_id).subquery()
    query = (
        select(
            func.count().filter(given.c.up > given.c.down).label("up"),
            func.count().filter(given.c.up < given.c.down).label("down"),
        )
        .select_from(given)
        .join(Completion, Completion.id == given.c.completion_id)
        .join(Prompt, Prompt.id == Completion.prompt_id)
        .where(Prompt.split == "train")
    )
    return session.execute(query).one()


def thumbs(session: Session, project_id: int) -> Iterator[Any]:
    """Stream responses to train prompts that have live thumbs: up, down, thumb ids, and the prompt's
    messages and tags."""
    given = _given(project_id).subquery()
    query = (
        select(
            Completion.id,
            Completion.text,
            Completion.ai_revised,
            given.c.up,
            given.c.down,
            given.c.thumbs,
            Prompt.messages,
            Prompt.split,
            Prompt.domain,
            Prompt.difficulty,
            Prompt.safety_category,
        )
        .join(given, given.c.completion_id == Completion.id)
        .join(Prompt, Prompt.id == Completion.prompt_id)
        .where(Prompt.split == "train")
        .order_by(Completion.id)
    )
    return _stream(session, query)


# ---- recording what was read -----------------------------------------------------------------------------------------

_HELD: dict[str, tuple[type[Any], str]] = {
    "comparisons": (SnapshotComparison, "comparison_id"),
    "demonstrations": (SnapshotDemonstration, "demonstration_id"),
    "thumbs": (SnapshotThumb, "thumb_id"),
}


def any_withdrawn(session: Session, kind: str, ids: Sequence[int]) -> bool:
    """Tell whether somebody has withdrawn one of these comparisons, demonstrations or thumbs.

    A thumb that its labeler has changed since is not withdrawn.
    """
    of_kind: dict[str, Select[int]] = {
        "comparisons": select(Comparison.id).where(among(Comparison.id, ids), Comparison.state == "withdrawn"),
        "demonstrations": select(Demonstration.id).where(
            among(Demonstration.id, ids), Demonstration.state == "withdrawn"
        ),
        "thumbs": select(Thumb.id).where(among(Thumb.id, ids), Thumb.superseded_for == "removed"),
    }
    return session.scalar(of_kind[kind].limit(1)) is not None


def add_held(session: Session, snapshot: Snapshot, kind: str, ids: Sequence[int]) -> None:
    """Record which comparisons, demonstrations or thumbs a snapshot holds."""
    table, column = _HELD[kind]
    held = select(literal(snapshot.id, BigInteger), func.unnest(literal(list(ids), ARRAY(BigInteger))))
    session.execute(insert(table).from_select(["snapshot_id", column], held))
