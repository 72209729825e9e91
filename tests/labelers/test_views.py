"""Reasons in words and when they are given; drift and slices."""

from typing import Any

import numpy as np
import pytest

from app.documents import Calibration
from app.domain.labelers import UNKNOWN, UNSAID, WEEK, Judged, figures
from app.labelers import views
from app.labelers.queries import Labeler, Read
from app.labelers.service import Overview

ANN, BOB, EVE = 0, 1, 2


def table(rows: list[tuple[int, int, int]], **columns: Any) -> Judged:
    n = len(rows)
    labeler, comparison, side = np.array(rows, np.int64).T
    given = {
        "gold": np.full(n, UNSAID),
        "verdict": np.full(n, UNSAID),
        "left": np.full(n, UNKNOWN),
        "ms": np.full(n, float(UNKNOWN)),
        "length": np.full(n, 100),
        "at": np.zeros(n),
        "ranking": np.zeros(n, np.int64),
        "size": np.full(n, 2),
    } | {name: np.asarray(column) for name, column in columns.items()}
    return Judged(labeler, comparison, side, **given)


def overview(judged: Judged, labelers: int = 3) -> Overview:
    people = [Labeler(i, f"L{i}", "person", "active", "", None, None, {}) for i in range(labelers)]
    return Overview(people, figures(judged, labelers), {i: i for i in range(labelers)}, {}, None)


def test_machines_are_never_too_fast() -> None:
    judged = table([(ANN, i, 1) for i in range(6)], ms=np.full(6, 50.0))
    for kind, expected in (("person", 1), ("ai_judge", 0)):
        found = overview(judged)
        found = found._replace(labelers=[each._replace(kind=kind) for each in found.labelers])
        rows = views.listing(found, Calibration(), kind).rows
        assert sum("too fast" in reason.words for row in rows for reason in row.reasons) == expected


def reasons(judged: Judged, labelers: int = 3) -> dict[int, list[str]]:
    found = views.listing(overview(judged, labelers), Calibration(), None)
    return {row.labeler.id: [reason.words for reason in row.reasons] for row in found.rows}


def drifting(agreed_before: int, agreed_now: int, n: int) -> Judged:
    """Bob and Eve always say B. Ann agrees in these shares of n answers before, and of n in the last three weeks."""
    rows, at = [], []
    for i in range(2 * n):
        week = i * 6 // (2 * n)
        agrees = i < agreed_before if i < n else i - n < agreed_now
        for who in (BOB, EVE):
            rows.append((who, i, 1))
            at.append(week * WEEK)
        rows.append((ANN, i, 1 if agrees else -1))
        at.append(week * WEEK)
    return table(rows, at=np.array(at, float))


def test_drift_is_a_reason_where_it_is_more_than_chance() -> None:
    assert "agreement fell from 90% to 40%" in reasons(drifting(90, 40, 100))[ANN]
    # Better, hardly worse, or too few to tell.
    for before, now, n in ((40, 90, 100), (90, 85, 100), (9, 4, 10)):
        assert not any("fell" in words for words in reasons(drifting(before, now, n))[ANN])
    drift = views.drift(figures(drifting(90, 40, 100), 3), ANN)
    assert drift is not None
    assert (drift.before, drift.now, drift.words) == (0.9, 0.4, "↘ -50")
    assert len(drift.points.split()) == 6
    quiet = views.drift(figures(drifting(9, 4, 10), 3), ANN)
    assert quiet is not None
    assert quiet.words == ""


def test_chance_names_nobody() -> None:
    """Two hundred fair labelers, ten of whom have a left share whose 95% interval excludes one half."""
    rng = np.random.default_rng(0)
    rows = [(who, 100 * (who // 5) + i, 1) for who in range(200) for i in range(100)]
    judged = table(rows, left=rng.integers(0, 2, len(rows)))
    found = views.listing(overview(judged, 200), Calibration(), None)
    assert 3 <= sum(row.left.marked for row in found.rows if row.left) <= 20
    assert sum(bool(row.reasons) for row in found.rows) <= 2


def test_cannot_judge_and_picking_right() -> None:
    rows = [(ANN, i, UNSAID if i % 2 else 1) for i in range(60)] + [(BOB, i, 1) for i in range(60)]
    found = reasons(table(rows, left=[UNKNOWN] * 60 + [0] * 50 + [1] * 10), labelers=2)
    assert found[ANN] == ["says “cannot judge” in 50% (38–62)"]
    assert found[BOB] == ["picks the right response in 83% (72–91)"]


def test_agreement_is_held_against_the_rest() -> None:
    rows = [(who, i, 1) for i in range(200) for who in (BOB, EVE)] + [(ANN, i, i % 2 * 2 - 1) for i in range(200)]
    found = reasons(table(rows))
    assert found[ANN] == ["agrees with others in 50% (43–57); usual is 75%"]
    assert found[BOB] == found[EVE] == []


def test_slices_of_one() -> None:
    rows = [(ANN, 0, 1), (BOB, 0, 1), (ANN, 1, 1), (BOB, 1, -1), (ANN, 2, 1), (ANN, 3, UNSAID), (BOB, 3, 1)]
    read = Read(table(rows), np.array([5, 6]), np.array([10, 11, 12, 13]))
    tags = {10: ("law", "easy"), 11: ("law", "hard"), 12: ("", "hard"), 13: ("art", "easy")}
    found = {(each.name, each.value): (each.judgments, each.agreement) for each in views.slices(read, 0, tags)}
    assert list(found) == [("domain", "art"), ("domain", "law"), ("difficulty", "easy"), ("difficulty", "hard")]
    assert found["domain", "art"] == (1, None)
    law = found["domain", "law"]
    assert law[0] == 2
    assert law[1] is not None
    assert (law[1].hits, law[1].n) == (1, 2)
    assert read.index_of(6) == 1
    assert read.index_of(7) is None


@pytest.mark.parametrize(("hits", "n", "words"), [(71, 100, "71% (61–79)"), (0, 6, "0% (0–39)")])
def test_a_share_in_words(hits: int, n: int, words: str) -> None:
    share = views.share(hits, n)
    assert share is not None
    assert share.words == words
    assert views.share(0, 0) is None
