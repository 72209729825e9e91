"""The database itself enforces the important rules, whatever code writes to it."""

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.models import Comparison, Judgment
from tests import factories


def test_overlap_is_never_exceeded_by_judgments_and_leases(session: Session) -> None:
    comparison = factories.comparison(session, overlap=2)
    factories.judgment(session, comparison, preference=1)
    lease = factories.lease(session, comparison)
    with pytest.raises(IntegrityError, match="overlap_never_exceeded"), session.begin_nested():
        factories.judgment(session, comparison, preference=-1)
    with pytest.raises(IntegrityError, match="overlap_never_exceeded"), session.begin_nested():
        factories.lease(session, comparison)
    lease.state = "expired"
    session.flush()
    factories.judgment(session, comparison, preference=-1)
    counts = select(Comparison.judgment_count, Comparison.lease_count)
    assert session.execute(counts).one() == (2, 0)


def test_one_live_judgment_per_labeler_and_comparison(session: Session) -> None:
    comparison = factories.comparison(session, overlap=3)
    first = factories.judgment(session, comparison, preference=1)
    with pytest.raises(IntegrityError, match="uq_judgment_one_live"), session.begin_nested():
        factories.judgment(session, comparison, preference=2, labeler_id=first.labeler_id)


def test_a_judgment_is_append_only_and_may_be_superseded_once(session: Session) -> None:
    comparison = factories.comparison(session, overlap=2)
    judgment = factories.judgment(session, comparison, preference=1)
    with pytest.raises(IntegrityError, match="append-only"), session.begin_nested():
        session.execute(text("UPDATE judgment SET preference = 3"))
    with pytest.raises(IntegrityError, match="append-only"), session.begin_nested():
        session.execute(text("DELETE FROM judgment"))
    session.execute(text("UPDATE judgment SET superseded_at = now(), superseded_for = 'undone'"))
    assert session.scalar(select(Comparison.judgment_count)) == 0
    factories.judgment(session, comparison, preference=2, labeler_id=judgment.labeler_id)
    assert session.scalar(select(Comparison.judgment_count)) == 1
    with pytest.raises(IntegrityError, match="append-only"), session.begin_nested():
        session.execute(
            text("UPDATE judgment SET superseded_at = NULL, superseded_for = NULL WHERE superseded_at IS NOT NULL")
        )
    assert len(session.scalars(select(Judgment)).all()) == 2


def test_a_published_rubric_cannot_change(session: Session) -> None:
    project = factories.project(session)
    factories.rubric(session, project, version=1)
    with pytest.raises(IntegrityError, match="append-only"), session.begin_nested():
        session.execute(text("UPDATE rubric SET guideline = 'other'"))
    draft = factories.rubric(session, project, version=None)
    draft.guideline = "edited"
    session.flush()


def test_a_judgments_rubric_is_the_comparisons(session: Session) -> None:
    comparison = factories.comparison(session)
    other = factories.rubric(session, factories.project(session), version=1)
    with pytest.raises(IntegrityError, match="fk_judgment_comparison_id_rubric_id"), session.begin_nested():
        factories.judgment(session, comparison, preference=0, rubric_id=other.id)


def test_the_audit_trail_is_append_only(session: Session) -> None:
    session.execute(text("INSERT INTO audit_event (action) VALUES ('test')"))
    with pytest.raises(IntegrityError, match="append-only"), session.begin_nested():
        session.execute(text("DELETE FROM audit_event"))
