"""What waits for a reviewer, why, and in which order."""

import itertools
import re
from collections.abc import Callable
from typing import Any

import pytest
from markupsafe import escape
from sqlalchemy import text
from sqlalchemy.orm import Session

from app.models import Comparison, Project
from app.models.comparison import IN_CONFLICT
from app.review import queues, service, views
from app.review.forms import Wanted
from app.review.queues import QUEUES, place_of
from tests import factories
from tests.review.cases import conflicting, judged


@pytest.fixture
def project(session: Session) -> Project:
    return factories.project(session)


def ids(session: Session, project: Project, queue: str, **filters: Any) -> list[int]:
    wanted = Wanted(queue=queue, **filters)
    return [row.comparison.id for row in queues.page(session, project.id, wanted, None)]


def words(session: Session, project: Project, queue: str) -> list[str]:
    rows = queues.page(session, project.id, Wanted(queue=queue), None)
    return [re.sub("</?bdi>", "", views.row(queue, row, hidden=False).why) for row in rows]


def test_disagreement_comes_least_agreed_first(session: Session, project: Project) -> None:
    three_to_two = judged(session, project, 1, 1, 1, -1, -1)  # 4 of 10 pairs
    opposed = judged(session, project, 2, -2)  # 0 of 1
    two_to_one = judged(session, project, 1, 1, -1)  # 1 of 3
    judged(session, project, 1, 3)  # agrees
    judged(session, factories.project(session), 1, -1)  # elsewhere
    unjudgeable = factories.comparison(session, project, state="in_review", review_reason="unjudgeable")
    factories.judgment(session, unjudgeable, preference=None)
    factories.judgment(session, unjudgeable, preference=0, both_bad=True)
    assert ids(session, project, "disagreement") == [opposed.id, unjudgeable.id, two_to_one.id, three_to_two.id]
    assert words(session, project, "disagreement") == [
        "1 for A, 1 for B",
        "labelers could not judge it: 1 both bad, 1 could not judge",
        "1 for A, 2 for B",
        "2 for A, 3 for B",
    ]
    assert service.waiting(session, project) == {"disagreement": 4, "conflict": 0, "flagged": 0, "requested": 0}


def test_conflicts_come_unseen_ones_first_then_the_surest(session: Session, project: Project) -> None:
    learned = conflicting(session, project, 0.99, trained=True)
    sure = conflicting(session, project, 0.94)
    surer = conflicting(session, project, 0.02, preference=2)
    at_the_edge = conflicting(session, project, 0.8)
    conflicting(session, project, 0.79)  # not sure enough
    conflicting(session, project, 0.05)  # of the same mind
    conflicting(session, project, 0.99, conflict_dismissed=True)
    conflicting(session, project, 0.99).state = "adjudicated"
    conflicting(session, project, 0.99, preference=0)  # a tie is no side
    conflicting(session, factories.project(session), 0.99)
    assert ids(session, project, "conflict") == [surer.id, sure.id, at_the_edge.id, learned.id]
    assert words(session, project, "conflict") == [
        "2 for B; reward model 98% for A",
        "2 for A; reward model 94% for B",
        "2 for A; reward model 80% for B",
        "2 for A; reward model 99% for B",
    ]


def test_where_people_stand_is_the_posterior_where_there_is_one(session: Session, project: Project) -> None:
    """The consensus method may weigh one good labeler above two careless ones, against the mean."""
    row = conflicting(session, project, 0.9)
    row.p_b = 0.7
    session.flush()
    assert ids(session, project, "conflict") == []
    row.p_b, row.reward_p_b = 0.7, 0.1
    session.flush()
    assert ids(session, project, "conflict") == [row.id]


def test_a_page_and_the_database_mean_the_same_conflicts(session: Session, project: Project) -> None:
    """`views.is_conflict` decides for one row what the index contains for all rows."""
    for p in (None, 0.0, 0.2, 0.21, 0.5, 0.79, 0.8, 1.0):
        for posterior in (None, 0.0, 0.49, 0.5, 0.51, 1.0):
            for preference in (-2, 0, 2):
                row = judged(session, project, preference, preference)
                row.reward_p_b, row.p_b = p, posterior
    session.flush()
    held = {row for (row,) in session.execute(text(f"SELECT id FROM comparison WHERE {IN_CONFLICT}"))}
    assert held == {row.id for row in session.query(Comparison) if views.is_conflict(row)}
    assert 0 < len(held) < session.query(Comparison).count()


def test_flagged_says_which_flags_by_whom(session: Session, project: Project) -> None:
    row = factories.comparison(session, project, overlap=3, flagged=True)
    ada, bo = factories.user(session, name="Ada"), factories.user(session, name="Bo", kind="ai_judge")
    factories.judgment(session, row, preference=1, labeler_id=bo.id, flags=["harmful"])
    factories.judgment(session, row, preference=1, labeler_id=ada.id, flags=["harmful", "broken"])
    factories.comparison(session, project, flagged=True, state="withdrawn")
    later = factories.comparison(session, project, flagged=True)
    assert ids(session, project, "flagged") == [row.id, later.id]
    assert words(session, project, "flagged")[0] == "broken: Ada; harmful: Bo (ai judge), Ada"


def test_requested_says_who_asked_and_why(session: Session, project: Project) -> None:
    row, other = judged(session, project, 1, 1), judged(session, project, -1, -1)
    ada = factories.user(session, "admin", name="Ada")
    service.request(session, project, ada, row.id, note="Both cite the same source.")
    service.request(session, project, ada, other.id)
    assert ids(session, project, "requested") == [row.id, other.id]
    assert ids(session, project, "disagreement") == []
    assert words(session, project, "requested") == [
        "Ada requested a review: “Both cite the same source.”",
        "Ada requested a review (2 for A)",
    ]


def test_names_and_notes_turn_no_direction_and_are_text(session: Session, project: Project) -> None:
    """Each is isolated on its line; see also the browser tests."""
    eve = factories.user(session, "admin", "labeler", name="<i>Eve</i>\u202e")
    flagged = factories.comparison(session, project, flagged=True)
    factories.judgment(session, flagged, preference=1, labeler_id=eve.id, flags=["<u>"])
    asked = judged(session, project, 1, 1)
    service.request(session, project, eve, asked.id, note="</bdi>\u202e")
    for queue, why in (
        ("flagged", "<bdi>&lt;u&gt;</bdi>: <bdi>&lt;i&gt;Eve&lt;/i&gt;\u202e</bdi>"),
        (
            "requested",
            "<bdi>&lt;i&gt;Eve&lt;/i&gt;\u202e</bdi> requested a review: “<bdi>&lt;/bdi&gt;\u202e</bdi>”",
        ),
    ):
        [row] = queues.page(session, project.id, Wanted(queue=queue), None)
        assert escape(views.row(queue, row, hidden=False).why) == why


def test_of_texts_only_the_beginning_is_read(session: Session, project: Project) -> None:
    prompt = factories.prompt(session, project, "Long? " * 200_000)
    judged(session, project, 1, -1, prompt=prompt, texts=("a" * 1_000_000, "b" * 1_000_000))
    [row] = queues.page(session, project.id, Wanted(), None)
    assert {len(row.prompt), len(row.a), len(row.b)} == {queues.EXCERPT}
    assert row.prompt.startswith("Long?")


def test_paging_goes_through_equal_keys(session: Session, project: Project) -> None:
    rows = [judged(session, project, 1, -1) for _ in range(5)]
    found, place = [], None
    while page := queues.page(session, project.id, Wanted(), place, limit=2):
        found += [row.comparison.id for row in page]
        place = place_of("disagreement", page[-1].comparison)
    assert found == [row.id for row in rows]


@pytest.mark.parametrize("queue", ["disagreement", "conflict", "flagged", "requested"])
def test_a_place_is_where_the_page_left_off(session: Session, project: Project, queue: Any) -> None:
    """The key of a row here equals the key in the index."""
    for p in (0.81, 0.0987654321, 1 / 3, 0.9):
        conflicting(session, project, p, trained=p > 0.85, flagged=True)
        judged(session, project, 1, 1, -1)
        asked = judged(session, project, 1, 1)
        asked.state, asked.review_reason = "in_review", "requested"
    session.flush()
    rows = queues.page(session, project.id, Wanted(queue=queue), None)
    assert len(rows) > 1
    for before, after in itertools.pairwise(rows):
        place = place_of(queue, before.comparison)
        assert queues.next_id(session, project.id, Wanted(queue=queue), place) == after.comparison.id


def test_filters(session: Session, project: Project) -> None:
    law = factories.prompt(session, project, domain="law", difficulty="hard", safety_category="privacy")
    wanted, other = judged(session, project, 1, -1, prompt=law), judged(session, project, 1, -1)
    newer = factories.rubric(session, project, version=2)
    under_2 = judged(session, project, 1, -1, rubric_id=newer.id, purpose="heldout")
    assert ids(session, project, "disagreement", slice="domain=law") == [wanted.id]
    assert ids(session, project, "disagreement", slice="difficulty=hard") == [wanted.id]
    assert ids(session, project, "disagreement", slice="safety_category=privacy") == [wanted.id]
    assert ids(session, project, "disagreement", slice="purpose=heldout") == [under_2.id]
    assert ids(session, project, "disagreement", version="1") == [wanted.id, other.id]
    assert ids(session, project, "disagreement", version="2") == [under_2.id]
    assert ids(session, project, "disagreement", version="2", slice="domain=law") == []
    assert ids(session, project, "disagreement", version="7") == []


def test_a_full_queue_costs_what_an_empty_one_does(session: Session, project: Project) -> None:
    """Every page and count reads the queue's index, and a page reads no more rows than it shows."""
    row = factories.comparison(session, project)
    session.execute(
        text(
            "INSERT INTO comparison (project_id, prompt_id, completion_a_id, completion_b_id, rubric_id, purpose,"
            " overlap, state, review_reason, agreement, consensus, reward_p_b, flagged)"
            " SELECT project_id, prompt_id, completion_a_id, completion_b_id, rubric_id, purpose, overlap,"
            " CASE WHEN n % 2 = 0 THEN 'in_review' ELSE 'settled' END,"
            " CASE WHEN n % 4 = 0 THEN 'requested' ELSE 'split' END,"
            " (n % 97) / 97.0, CASE WHEN n % 3 = 0 THEN 1 ELSE -1 END, (n % 101) / 101.0, n % 5 = 0"
            " FROM comparison, generate_series(1, 20000) AS n WHERE id = :id"
        ),
        {"id": row.id},
    )
    session.execute(text("ANALYZE comparison"))
    indexes = {
        "disagreement": "ix_comparison_in_disagreement",
        "conflict": "ix_comparison_in_conflict",
        "flagged": "ix_comparison_flagged",
        "requested": "ix_comparison_requested",
    }
    for queue in QUEUES:
        wanted = Wanted(queue=queue)
        some = queues.page(session, project.id, wanted, None, limit=2)
        compiled = queues._ids(project.id, wanted, place_of(queue, some[-1].comparison)).limit(queues.PAGE)
        plan = "\n".join(explain(session, compiled))
        assert indexes[queue] in plan, plan
        assert "Sort" not in plan, plan
        read = [int(rows) for rows in re.findall(r"actual rows=(\d+)", plan)]
        assert max(read) == queues.PAGE, plan


def explain(session: Session, statement: Any) -> list[str]:
    compiled = statement.compile(session.get_bind(), compile_kwargs={"literal_binds": True})
    return [line for (line,) in session.execute(text(f"EXPLAIN (ANALYZE, TIMING OFF) {compiled}".replace(":", r"\:")))]


def test_counts_stop_where_nobody_reads_further(
    session: Session, project: Project, monkeypatch: pytest.MonkeyPatch, sign_in: Callable[..., Any]
) -> None:
    monkeypatch.setattr(queues, "COUNT_LIMIT", 3)
    for _ in range(5):
        judged(session, project, 1, -1)
    assert service.waiting(session, project)["disagreement"] == 3
    session.commit()
    assert "3+" in sign_in("admin").get(f"/projects/{project.slug}/review").text
