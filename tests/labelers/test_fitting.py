"""The fit of a project: what it writes, the effect of verdicts and known answers, and consistency with settling."""

import numpy as np
import pytest
from sqlalchemy import BigInteger, cast, select, text
from sqlalchemy.orm import Session

from app.columns import load_columns, read_columns
from app.domain.consensus import majority, verdict
from app.labelers import fitting
from app.labelers.fitting import Said
from app.models import Adjudication, Comparison, Judgment, Project, ProjectLabeler
from tests import factories


def project_by(session: Session, method: str) -> Project:
    return factories.project(session, labeling={"consensus": method}, overlap=3)


def judged(session: Session, project: Project, *said: tuple[int, int | None], **values: object) -> Comparison:
    """Add a settled comparison with these (labeler, preference)."""
    row = factories.comparison(session, project, **({"overlap": 10, "state": "settled"} | values))
    for labeler_id, preference in said:
        factories.judgment(session, row, preference=preference, labeler_id=labeler_id)
    session.flush()
    session.refresh(row)
    return row


def crowd(session: Session, size: int) -> list[int]:
    return [factories.user(session).id for _ in range(size)]


def noisy(session: Session, project: Project, labelers: list[int], comparisons: int = 40) -> list[Comparison]:
    """All labelers answer everything; the first errs one time in twenty, the last every second time."""
    rng = np.random.default_rng(5)
    rows = []
    for _ in range(comparisons):
        truth = int(rng.choice([-2, 2]))
        errs = rng.random(len(labelers)) < np.linspace(0.05, 0.5, len(labelers))
        rows.append(
            judged(session, project, *((id_, -truth if e else truth) for id_, e in zip(labelers, errs, strict=False)))
        )
    return rows


def test_columns_go_to_postgres_and_back(session: Session) -> None:
    columns = {"id": np.array([3, -1, 2**40]), "value": np.array([0.5, -1e-300, np.pi])}
    load_columns(session, "there", columns)
    rows = session.execute(text("SELECT id, value FROM there")).all()
    assert rows == [(3, 0.5), (-1, -1e-300), (2**40, np.pi)]
    project = factories.project(session)
    items = [factories.comparison(session, project, gold=gold, purpose="calibration") for gold in (-3, 2)]
    query = select(Comparison.id, cast(Comparison.gold, BigInteger).label("gold")).order_by(Comparison.id)
    found = read_columns(session, query)
    assert (found["id"].tolist(), found["gold"].tolist()) == ([item.id for item in items], [-3, 2])
    with pytest.raises(TypeError, match="SMALLINT"):
        read_columns(session, select(Comparison.gold))
    assert len(read_columns(session, query.where(Comparison.id < 0))["id"]) == 0


@pytest.mark.parametrize("method", ["majority", "strength_weighted", "dawid_skene", "crowd_bt"])
def test_a_refit_writes_everything(session: Session, method: str) -> None:
    project = project_by(session, method)
    labelers = crowd(session, 5)
    rows = noisy(session, project, labelers)
    fitted = fitting.refit(session, project)
    assert (fitted.method, fitted.judgments, fitted.comparisons, fitted.labelers) == (method, 200, 40, 5)
    assert fitted.converged
    session.expire_all()
    assert fitting.last_fit(project) == fitted
    for row in rows:
        assert row.p_b is not None
        assert (row.consensus > 0) == (row.p_b > 0.5)
        assert row.p_tie == 0 or method != "majority"
    standings = session.scalars(select(ProjectLabeler).order_by(ProjectLabeler.labeler_id)).all()
    assert [row.labeler_id for row in standings] == labelers
    assert all(row.state == "active" for row in standings)
    assert standings[0].reliability > standings[-1].reliability + 0.1
    assert standings[0].fitted["low"] < standings[0].reliability < standings[0].fitted["high"]
    if method == "majority":
        said = list(session.scalars(select(Judgment.preference).where(Judgment.comparison_id == rows[0].id)))
        assert (rows[0].consensus, rows[0].p_b, rows[0].p_tie) == pytest.approx(majority(said)[:3], abs=1e-6)


def test_what_does_not_count(session: Session) -> None:
    project = project_by(session, "dawid_skene")
    ann, bob, eve = crowd(session, 3)
    both = judged(session, project, (ann, 1), (bob, 1), (eve, None))
    taken_back = judged(session, project, (ann, 1), (bob, -1))
    undone = session.scalars(
        select(Judgment).where(Judgment.comparison_id == taken_back.id, Judgment.labeler_id == bob)
    ).one()
    undone.superseded_at, undone.superseded_for = undone.created_at, "undone"
    withdrawn = judged(session, project, (ann, 1), (eve, 1), state="withdrawn")
    again = judged(session, project, (ann, -1), purpose="repeat", repeat_of_id=both.id)
    opened = judged(session, project, (bob, 1), state="open")
    elsewhere = judged(session, factories.project(session), (eve, 1))
    fitted = fitting.refit(session, project)
    assert (fitted.judgments, fitted.comparisons, fitted.labelers) == (4, 3, 2)
    session.expire_all()
    assert both.p_b > taken_back.p_b > 0.5
    # Open ones are decided when they settle.
    assert [row.p_b for row in (withdrawn, again, opened, elsewhere)] == [None] * 4
    assert session.get(ProjectLabeler, (project.id, eve)) is None


def test_verdicts_stand_and_measure(session: Session) -> None:
    project = project_by(session, "dawid_skene")
    ann, bob, eve = crowd(session, 3)
    rows = [judged(session, project, (ann, 1), (bob, -1), (eve, -1), state="adjudicated") for _ in range(12)]
    silent = judged(session, project, state="adjudicated")
    for row in (*rows, silent):
        session.add(Adjudication(comparison_id=row.id, reviewer_id=ann, verdict=3))
    open_question = judged(session, project, (ann, 1), (bob, -1))
    fitting.refit(session, project)
    session.expire_all()
    for row in (*rows, silent):
        assert (row.consensus, row.p_b, row.p_tie) == pytest.approx(verdict(3)[:3])
    reliabilities = {row.labeler_id: row.reliability for row in session.scalars(select(ProjectLabeler))}
    assert reliabilities[ann] > reliabilities[bob] + 0.2
    assert reliabilities[bob] == pytest.approx(reliabilities[eve], abs=0.02)
    # Two votes against each other: the one who sided with the reviewers weighs more.
    assert open_question.p_b > 0.6


def test_calibration_items_measure_and_keep_what_people_say(session: Session) -> None:
    project = project_by(session, "dawid_skene")
    ann, bob = crowd(session, 2)
    items = [
        judged(session, project, (ann, gold), (bob, -gold), purpose="calibration", gold=gold) for gold in (1, -2, 3) * 3
    ]
    fitting.refit(session, project)
    session.expire_all()
    found = {row.labeler_id: row.reliability for row in session.scalars(select(ProjectLabeler))}
    assert found[ann] > 0.75 > found[bob] + 0.15
    assert 0.5 < items[0].p_b < 1


@pytest.mark.parametrize("method", ["majority", "strength_weighted", "dawid_skene", "crowd_bt"])
def test_settling_decides_as_the_fit_did(session: Session, method: str) -> None:
    """Labelers with known reliability and, for Crowd-BT, responses that occur in no other comparison."""
    project = project_by(session, method)
    labelers = crowd(session, 5)
    rows = noisy(session, project, labelers)
    fitting.refit(session, project)
    session.expire_all()
    said = []
    for row in rows:
        found = session.execute(
            select(Judgment.labeler_id, Judgment.preference).where(Judgment.comparison_id == row.id)
        ).all()
        said.append(Said(*zip(*found, strict=False)))
    for row, each in zip(rows, fitting.decide(session, project, said), strict=True):
        assert (row.consensus, row.p_b, row.p_tie) == pytest.approx(each[:3], abs=0.005)
    # A newcomer is taken for an average labeler.
    (newcomer,) = fitting.decide(session, project, [Said([factories.user(session).id], [2])])
    assert 0.5 < newcomer.p_b < 0.95


def test_settling_before_any_fit(session: Session) -> None:
    project = project_by(session, "dawid_skene")
    (found,) = fitting.decide(session, project, [Said([factories.user(session).id], [1])])
    assert found.p_b == pytest.approx(0.75, abs=1e-6)
    assert fitting.decide(session, project, []) == []
    assert fitting.last_fit(project) is None


def test_an_empty_project(session: Session) -> None:
    project = project_by(session, "crowd_bt")
    assert fitting.refit(session, project).judgments == 0


def test_nothing_is_rewritten_that_did_not_change(session: Session) -> None:
    project = project_by(session, "dawid_skene")
    rows = noisy(session, project, crowd(session, 3), comparisons=10)
    fitting.refit(session, project)
    version = text("SELECT xmin::text FROM comparison ORDER BY id")
    session.commit()
    before = session.scalars(version).all()
    fitting.refit(session, project)
    session.commit()
    assert session.scalars(version).all() == before
    assert len(before) == len(rows)


@pytest.mark.parametrize("method", ["majority", "strength_weighted", "dawid_skene", "crowd_bt"])
def test_what_evaluates_a_policy_does_not_change_what_trains_the_next_one(session: Session, method: str) -> None:
    """Whichever policy people prefer in an evaluation, a round reads the same of the other comparisons. Both are about
    the same responses, which Crowd-BT rates."""
    found = []
    for preferred in (-2, 2):
        project, labelers = project_by(session, method), crowd(session, 3)
        others = []
        for n in range(8):
            said = [(labeler, -2 if n % 4 == labelers.index(labeler) else 1) for labeler in labelers]
            other = judged(session, project, *said, purpose="heldout" if n % 2 else "train")
            evaluates = {"purpose": "human_eval", "completion_a_id": other.completion_a_id}
            judged(session, project, *((labeler, preferred) for labeler in labelers), **evaluates)
            others.append(other)
        fitting.refit(session, project)
        for other in others:
            session.refresh(other)
        found.append([(other.consensus, other.p_b, other.p_tie) for other in others])
    assert found[0] == found[1]
