"""Agreement of a project: the numbers, the slices, the labelers' table and the page."""

from collections.abc import Callable
from typing import Any

import krippendorff
import numpy as np
import pytest
from sqlalchemy.orm import Session

from app.insights import queries, service
from app.models import Project
from tests import factories

NAN = float("nan")


@pytest.fixture
def project(session: Session) -> Project:
    return factories.project(session)


def judged(session: Session, project: Project, answers: dict[Any, int], **values: Any) -> Any:
    """A comparison with these preferences by labeler."""
    row = factories.comparison(session, project, overlap=10, **values)
    for labeler, preference in answers.items():
        factories.judgment(session, row, preference=preference, labeler_id=labeler.id)
    return row


def test_alpha_and_percent_of_a_project(session: Session, project: Project) -> None:
    rng = np.random.default_rng(7)
    labelers = [factories.user(session) for _ in range(4)]
    table = rng.integers(-3, 4, (4, 15)).astype(float)
    table[:, :6] = np.clip(table[0, :6] + rng.integers(0, 2, (4, 6)), -3, 3)  # some agreement
    table[rng.random(table.shape) < 0.3] = NAN
    for unit in table.T:
        said = {labeler: int(x) for labeler, x in zip(labelers, unit, strict=True) if not np.isnan(x)}
        judged(session, project, said)
    # None of these count: superseded, withdrawn, another project's.
    row = judged(session, project, {labelers[0]: 1}, state="withdrawn")
    factories.judgment(session, row, preference=-3, labeler_id=labelers[1].id)
    judged(session, factories.project(session), {labelers[0]: 1, labelers[1]: -1})
    row = judged(session, project, {})
    old = factories.judgment(session, row, preference=3, labeler_id=labelers[0].id)
    old.superseded_at, old.superseded_for = old.created_at, "undone"
    session.flush()

    found = service.agreement(session, project.id)
    sides = np.sign(table)
    assert found.whole.nominal_alpha == pytest.approx(
        krippendorff.alpha(reliability_data=sides, level_of_measurement="nominal"), abs=1e-9
    )
    assert found.whole.ordinal_alpha == pytest.approx(
        krippendorff.alpha(reliability_data=table, level_of_measurement="ordinal"), abs=1e-9
    )
    pairs = [(a, b) for unit in sides.T for i, a in enumerate(unit) for b in unit[i + 1 :] if a == a and b == b]
    assert found.whole.percent == pytest.approx(sum(a == b for a, b in pairs) / len(pairs))
    assert found.whole.judgments == np.isfinite(table).sum()
    assert found.preferences == {p: int((table == p).sum()) for p in range(-3, 4)}


def test_slices_are_computed_apart(session: Session, project: Project) -> None:
    ann, bob = factories.user(session), factories.user(session)
    facts = factories.prompt(session, project, domain="facts", difficulty="hard")
    chat = factories.prompt(session, project, domain="chat", split="heldout")
    judged(session, project, {ann: 2, bob: 2}, prompt=facts)
    judged(session, project, {ann: -1, bob: -3}, prompt=facts)
    judged(session, project, {ann: 1, bob: -1}, prompt=chat, purpose="heldout")
    found = service.agreement(session, project.id).by_slice
    assert found["domain", "facts"].percent == 1.0
    assert found["domain", "facts"].nominal_alpha == 1.0
    assert (found["domain", "facts"].comparisons, found["domain", "facts"].judgments) == (2, 4)
    assert found["domain", "chat"].percent == 0.0
    assert found["split", "heldout"] == found["purpose", "heldout"] == found["domain", "chat"]
    assert found["difficulty", "hard"] == found["domain", "facts"]
    assert list(found) == [
        ("domain", "chat"),
        ("domain", "facts"),
        ("difficulty", "easy"),
        ("difficulty", "hard"),
        ("split", "heldout"),
        ("split", "train"),
        ("purpose", "heldout"),
        ("purpose", "train"),
    ]


def test_labelers_with_their_consensus_and_left_share(session: Session, project: Project) -> None:
    ann, bob = factories.user(session, name="Ann"), factories.user(session, name="Bob")
    values = {"state": "settled", "overlap": 2}
    for preference, swapped, consensus in ((2, True, 1.0), (-1, False, -1.0), (1, False, -2.0), (0, False, 0.0)):
        row = factories.comparison(session, project, consensus=consensus, **values)
        factories.judgment(session, row, preference=preference, labeler_id=ann.id, swapped=swapped)
        factories.judgment(session, row, preference=0, labeler_id=bob.id, swapped=None)
    alone = factories.comparison(session, project, consensus=3.0, state="settled", overlap=1)
    factories.judgment(session, alone, preference=3, labeler_id=ann.id, swapped=None)
    found = {row.name: row for row in queries.labelers(session, project.id, 0).rows}
    assert found["Ann"].judgments == 5
    assert found["Ann"].with_consensus == pytest.approx(3 / 4)  # the comparison only Ann judged says nothing
    assert found["Ann"].left_picks == pytest.approx(2 / 3)  # B shown left and chosen, A left and chosen, B right
    assert found["Bob"].with_consensus == pytest.approx(1 / 4)
    assert found["Bob"].left_picks is None


def test_the_labelers_table_has_pages(session: Session, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queries, "PAGE", 2)
    labelers = [factories.user(session) for _ in range(3)]
    judged(session, project, dict.fromkeys(labelers, 1))
    judged(session, project, dict.fromkeys(labelers[1:], 1))
    first, second = (queries.labelers(session, project.id, number) for number in (0, 1))
    assert [row.name for row in (*first.rows, *second.rows)] == [
        u.name for u in (labelers[1], labelers[2], labelers[0])
    ]
    assert first.total == second.total == 3
    assert queries.labelers(session, project.id, 2).rows == []


def test_the_page_and_its_json(session: Session, project: Project, sign_in: Callable[..., Any]) -> None:
    session.commit()
    admin = sign_in("admin")
    url = f"/projects/{project.slug}/agreement"
    assert "No judgments yet" in admin.get(url).text
    judged(session, project, {factories.user(session): 3, factories.user(session): 3})
    session.commit()
    shown = admin.get(url).text
    assert "100.0%" in shown  # they agree, while alpha has no variation to go by
    assert "–" in shown
    program = sign_in("operator").get(url, headers={"Accept": "application/json"}).json()
    assert program["percent"] == 1.0
    assert program["nominal_alpha"] is None
    assert program["judgments"] == 2
    assert program["slices"]["split=train"]["comparisons"] == 1
    assert sign_in("labeler").get(url).status_code == 403


def test_judgments_of_one_value_have_no_alpha(session: Session, project: Project) -> None:
    assert service.agreement(session, project.id).whole == service.Agreement(0, 0, None, None, None)
