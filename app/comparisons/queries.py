"""SQL of the table of comparisons.

A page reads at most `WINDOW` comparisons, whatever is asked for and however many there are: those of the project, the
state and the round come through an index in the order of their ids, newest first. The other conditions are looked up
for these. If they leave less than a page, the next page goes on where the window ended.
"""

from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Select, column, exists, func, or_, select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session, aliased

from app.comparisons.forms import Wanted
from app.models import Comparison, Prompt, Round

PAGE = 50
WINDOW = 20_000
EXCERPT = 200  # characters
LONGEST_ID = 18  # digits


class Row(NamedTuple):
    comparison: Comparison
    prompt: str  # the beginning of its last turn
    domain: str
    round: int | None


class Page(NamedTuple):
    """A page of the table.

    following: the `before` of the next page; none at the end. searched: comparisons looked at, where that were not all
    before the page was full.
    """

    rows: list[Row]
    following: int | None
    searched: int | None = None


def page(session: Session, project_id: int, wanted: Wanted) -> Page:
    """The newest comparisons that fit, from before a place on."""
    window = _window(project_id, wanted)
    row = aliased(Comparison, window.subquery())
    excerpt = func.left(Prompt.messages[-1]["content"].astext, EXCERPT)
    found = (
        select(row, excerpt, Prompt.domain, Round.number)
        .join(Prompt, Prompt.id == row.prompt_id)
        .outerjoin(Round, Round.id == row.round_id)
        .where(*_conditions(row, wanted))
        .order_by(row.id.desc())
        .limit(PAGE + 1)
    )
    rows = [Row(*each) for each in session.execute(found)]
    if len(rows) > PAGE:
        return Page(rows[:PAGE], rows[PAGE - 1].comparison.id)
    ids = window.with_only_columns(Comparison.id).subquery()
    n, last = session.execute(select(func.count(), func.min(ids.c.id))).one()
    return Page(rows, last, n) if n == WINDOW else Page(rows, None)


def _window(project_id: int, wanted: Wanted) -> Select[Any]:
    found = select(Comparison).where(Comparison.project_id == project_id)
    if wanted.state:
        found = found.where(Comparison.state == wanted.state)
    if wanted.round:
        numbered = select(Round.id).where(Round.project_id == project_id, Round.number == int(wanted.round))
        found = found.where(Comparison.round_id == numbered.scalar_subquery())
    if wanted.before:
        found = found.where(Comparison.id < wanted.before)
    return found.order_by(Comparison.id.desc()).limit(WINDOW)


def _conditions(row: type[Comparison], wanted: Wanted) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = []
    if wanted.slice:
        name, _, value = wanted.slice.partition("=")
        found.append((row.purpose if name == "purpose" else getattr(Prompt, name)) == value)
    if wanted.below:
        found.append(row.agreement < int(wanted.below) / 100)
    if wanted.least:
        found.append(row.judgment_count >= int(wanted.least))
    if wanted.most:
        found.append(row.judgment_count <= int(wanted.most))
    if words := wanted.text.strip():
        is_id = words.isascii() and words.isdecimal() and len(words) <= LONGEST_ID
        found.append(or_(_contains(words), row.id == int(words)) if is_id else _contains(words))
    return found


def _contains(words: str) -> ColumnElement[bool]:
    message = func.jsonb_array_elements(Prompt.messages).table_valued(column("value", JSONB), name="message")
    content = message.c.value.op("->>")("content")
    return exists(select(1).select_from(message).where(func.strpos(func.lower(content), func.lower(words)) > 0))


def rounds(session: Session, project_id: int) -> list[int]:
    """Numbers of the rounds whose samples may be compared, newest first."""
    found = select(Round.number).where(Round.project_id == project_id).order_by(Round.number.desc()).limit(500)
    return list(session.scalars(found))
