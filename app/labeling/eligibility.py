"""SQL expressions for who can still answer a comparison."""

from collections.abc import Sequence

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    ScalarSelect,
    Select,
    case,
    exists,
    func,
    literal,
    select,
)

from app.access.queries import Number, may_label
from app.labeling.conditions import stands_in_the_way
from app.models import Comparison, Judgment, LabelerGroupMember, Lease, User


def left_of(people: Sequence[int]) -> ScalarSelect[int]:
    """Count how many of these people may label a comparison and can still answer it."""
    return _left_of(people, Comparison.id).with_only_columns(func.count(), maintain_column_froms=True).scalar_subquery()


def is_left_of(people: Sequence[int], comparison_id: Number = Comparison.id) -> ColumnElement[bool]:
    """Tell whether any of these people may label a comparison and can still answer it."""
    return exists(_left_of(people, comparison_id))


def left_of_kept() -> ColumnElement[int | None]:
    """Count the people a comparison is kept for who can still answer it; NULL if it is open to everybody."""
    able = select(func.count()).select_from(User).where(*may_label(Comparison.project_id), *_not_done(User.id))
    able = able.correlate(Comparison)
    person = able.where(User.id == Comparison.labeler_id).scalar_subquery()
    members = able.join(LabelerGroupMember, LabelerGroupMember.labeler_id == User.id)
    of_group = members.where(LabelerGroupMember.group_id == Comparison.group_id).scalar_subquery()
    return case((Comparison.labeler_id.is_not(None), person), (Comparison.group_id.is_not(None), of_group))


def _left_of(people: Sequence[int], comparison_id: Number) -> Select[int]:
    given = func.unnest(literal(list(people), ARRAY(BigInteger))).table_valued("id", name="given").render_derived()
    return select(given.c.id).where(*_not_done(given.c.id, comparison_id)).correlate_except(given)


def _not_done(labeler_id: Number, comparison_id: Number = Comparison.id) -> list[ColumnElement[bool]]:
    """Condition: they have neither judged the comparison nor given it up. An answer that they took back
    does not count."""
    judged = select(Judgment.id).where(
        Judgment.comparison_id == comparison_id,
        Judgment.labeler_id == labeler_id,
        stands_in_the_way(),
    )
    recused = select(Lease.id).where(
        Lease.comparison_id == comparison_id, Lease.labeler_id == labeler_id, Lease.state == "recused"
    )
    return [~exists(rows.correlate_except(table)) for rows, table in ((judged, Judgment), (recused, Lease))]
