"""Data for a model's page: the texts in its folder, and nested figures as tables."""

import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy.orm import Session

from app.artifacts import ArtifactStore
from app.domain.intervals import clustered_share
from app.errors import NotFound
from app.lineage import queries
from app.lineage.reward_cards import Ceiling
from app.models import ModelVersion

MAX_BYTES = 4 << 20  # maximum size of a file shown on the page


class Cell(NamedTuple):
    text: str
    share: float | None = None  # drawn as a bar of this length, 0 to 1
    is_number: bool = False


class Table(NamedTuple):
    title: str
    columns: tuple[str, ...]  # the first one names the row; empty if rows have no name
    rows: list[tuple[Cell, ...]]


class Papers(NamedTuple):
    """Texts and figures in a model's folder."""

    readme: str
    report: dict[str, Any]


def papers(store: ArtifactStore, model: ModelVersion) -> Papers:
    """Return README.md and report.json of the model's own folder; empty if it has none or is not on this machine."""
    folder = model.adapter or model.base
    try:
        report = json.loads(_text(store, f"{folder}/report.json") or "null")
    except ValueError:  # another program's file of the same name
        report = None
    return Papers(_text(store, f"{folder}/README.md"), report if isinstance(report, dict) else {})


def ceiling(session: Session, project_id: int, at: datetime) -> Ceiling | None:
    """Return the labelers' agreement at a moment, with an interval clustered by prompt; None without two judgments."""
    by_prompt = queries.agreement_by_prompt(session, project_id, at)
    agreement = clustered_share(by_prompt)
    return agreement and Ceiling(agreement, sum(n for _, n in by_prompt))


def _text(store: ArtifactStore, location: str) -> str:
    try:
        path = store.resolve(location)  # resolve the file itself, because it may be a link to anywhere
    except NotFound:
        return ""
    if not path.is_file() or path.stat().st_size > MAX_BYTES:
        return ""
    return path.read_text(encoding="utf-8", errors="replace")


def tables(value: Any, path: tuple[str, ...] = ()) -> Iterator[Table]:
    """Yield nested figures as tables, one per level.

    A dictionary's plain values make a table of names and values. Sibling dictionaries of plain values share a table,
    with a row each. A list of dictionaries makes a table too, with shares drawn as bars, for example a reliability
    diagram.
    """
    title = ": ".join(path)
    if isinstance(value, list):
        yield _of_rows(title, (), [()] * len(value), value)
        return
    plain = {name: each for name, each in value.items() if _is_plain(each)}
    flat = {name: each for name, each in value.items() if isinstance(each, dict) and each and _is_flat(each)}
    if plain:
        yield Table(title, ("", ""), [(Cell(_words(name)), _cell(each)) for name, each in plain.items()])
    alike = len(flat) > 1 and len(set.intersection(*(set(each) for each in flat.values()))) > 0
    if alike:
        yield _of_rows(title, ("",), [(Cell(name),) for name in flat], list(flat.values()))
    for name, each in value.items():
        if name not in plain and each and not (alike and name in flat):
            yield from tables(each, (*path, _words(name)))


def _of_rows(
    title: str, named: tuple[str, ...], names: Sequence[tuple[Cell, ...]], rows: Sequence[dict[str, Any]]
) -> Table:
    keys = list(dict.fromkeys(key for row in rows for key in row))
    # Only lists are diagrams: bars beside every named figure would be too many.
    shares = {key for key in keys if not named and all(_is_share(row.get(key)) for row in rows)}
    cells = [
        (*name, *(_cell(row.get(key), bar=key in shares) for key in keys))
        for name, row in zip(names, rows, strict=True)
    ]
    return Table(title, (*named, *(_words(key) for key in keys)), cells)


def _is_plain(value: Any) -> bool:
    return not isinstance(value, dict) and not (
        isinstance(value, list) and value and all(isinstance(each, dict) and _is_flat(each) for each in value)
    )


def _is_flat(value: dict[str, Any]) -> bool:
    return all(_is_plain(each) for each in value.values())


def _is_share(value: Any) -> bool:
    return isinstance(value, float) and 0 <= value <= 1


def _words(name: str) -> str:
    return name.replace("_", " ")


def _cell(value: Any, bar: bool = False) -> Cell:
    if value is None:
        return Cell("–", is_number=True)
    if isinstance(value, bool):
        return Cell("yes" if value else "no")
    if isinstance(value, int):
        return Cell(f"{value:,}", is_number=True)
    if isinstance(value, float):
        # Enough digits to tell two models apart; very small numbers keep their significant digits.
        text = f"{value:.3g}" if 0 < abs(value) < 0.001 else f"{value:,.3f}"
        return Cell(text, value if bar else None, is_number=True)
    if isinstance(value, list):
        return Cell(", ".join(_cell(each).text for each in value) or "–")
    return Cell(str(value))
