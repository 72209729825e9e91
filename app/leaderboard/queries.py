"""SQL of the leaderboard: the judgments between two policies that measure them, and their responses."""

from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Select,
    and_,
    any_,
    case,
    exists,
    func,
    literal,
    select,
)
from sqlalchemy.orm import Session, aliased

from app.domain.pairing import EVALUATION
from app.models import AgreementTally, Comparison, Completion, Judgment, ModelVersion, User

# On held-out prompts. Policies train on the others, and answer those better than unseen prompts.
PURPOSES = ("heldout", "human_eval")
# Ways of choosing a pair (app.domain.pairing) that do not look at how good its responses are.
UNBIASED = (EVALUATION, "random", "new_against_old")
TEXTS = 5_000  # responses fetched at once

first, second = aliased(Completion), aliased(Completion)
policy = Comparison.selection["policy"].astext
COUNTS = and_(Comparison.purpose.in_(PURPOSES), Comparison.state != "withdrawn", policy.in_(UNBIASED))


class Row(NamedTuple):
    """A judgment with its policies and responses in canonical order, and the preference towards B."""

    a: int
    b: int
    completion_a: int
    completion_b: int
    preference: int
    swapped: bool | None
    prompt: int
    labeler: int


def size(session: Session, project_id: int) -> int:
    """Return roughly how many judgments the project has, of any kind, from counts that every judgment updates."""
    answers = func.sum(AgreementTally.n * func.cardinality(AgreementTally.answers))
    return int(session.scalar(select(answers).where(AgreementTally.project_id == project_id)) or 0)


def policies(session: Session, project_id: int) -> dict[int, str]:
    """Return the names of models that can be on the board, by id, oldest first."""
    found = select(ModelVersion.id, ModelVersion.name).where(
        ModelVersion.project_id == project_id, ModelVersion.role != "reward"
    )
    return {row.id: row.name for row in session.execute(found.order_by(ModelVersion.id))}


def rows(session: Session, project_id: int, kinds: Collection[str], most: int) -> list[Row]:
    """Return the newest judgments that count, at most `most`, by labelers of these kinds."""
    found = _between(
        project_id,
        first.model_version_id,
        second.model_version_id,
        first.id,
        second.id,
        Judgment.preference,
        Judgment.swapped,
        Comparison.prompt_id,
        Judgment.labeler_id,
    ).where(COUNTS, User.kind.in_(kinds))
    _join_in_order(session)
    return [Row(*row) for row in session.execute(found.order_by(Judgment.id.desc()).limit(most))]


def counts(session: Session, project_id: int) -> Sequence[Any]:
    """Count judgments between two policies on held-out prompts: (reason, kind of labeler, n).

    The reason is empty for judgments that count. Otherwise it is: withdrawn; chosen (the pair was chosen for what its
    responses are like); or unknown (nothing records how it was chosen).
    """
    reason: ColumnElement[str] = case(
        (Comparison.state == "withdrawn", "withdrawn"),
        (policy.in_(UNBIASED), ""),
        (policy.is_(None), "unknown"),
        else_="chosen",
    ).label("reason")
    found = _between(project_id, reason, User.kind, func.count().label("n")).where(Comparison.purpose.in_(PURPOSES))
    _join_in_order(session)
    return session.execute(found.group_by(reason, User.kind)).all()


def texts(session: Session, ids: Sequence[int]) -> Iterator[tuple[int, int | None, str]]:
    """Yield (id, tokens, text) of responses, without holding all texts at once."""
    for begin in range(0, len(ids), TEXTS):
        wanted = literal(list(ids[begin : begin + TEXTS]), ARRAY(BigInteger))
        found = select(Completion.id, Completion.n_tokens, Completion.text).where(Completion.id == any_(wanted))
        yield from ((id_, tokens, text) for id_, tokens, text in session.execute(found))


def _join_in_order(session: Session) -> None:
    """Make PostgreSQL join in the order that `_between` is written in, until the transaction ends.

    Without statistics, for example after an import, it assumes tables are empty and may pair all responses with each
    other.
    """
    session.execute(select(func.set_config("join_collapse_limit", "1", True)))


def _between(project_id: int, *columns: Any) -> Select[Any]:
    """Select live judgments with a preference between responses of two of the project's policies."""
    is_policy = [
        exists().where(
            ModelVersion.id == each.model_version_id,
            ModelVersion.project_id == project_id,
            ModelVersion.role != "reward",
        )
        for each in (first, second)
    ]
    return (
        select(*columns)
        .select_from(Comparison)
        .join(first, first.id == Comparison.completion_a_id)
        .join(second, second.id == Comparison.completion_b_id)
        .join(Judgment, Judgment.comparison_id == Comparison.id)
        .join(User, User.id == Judgment.labeler_id)
        .where(
            Comparison.project_id == project_id,
            first.model_version_id != second.model_version_id,
            *is_policy,
            Judgment.superseded_at.is_(None),
            Judgment.preference.is_not(None),
        )
    )
