"""The pages of the review room, over HTTP."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from app.models import Adjudication, Comparison, Judgment, Project, User
from app.models.labeler import ProjectLabeler
from app.review import service
from tests import factories
from tests.review.cases import conflicting, judged


@pytest.fixture
def project(session: Session) -> Project:
    return factories.project(session)


def words(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", re.sub(r"</?bdi>", "", page)))


def test_the_next_item_comes_after_each_decision(
    session: Session, project: Project, sign_in: Callable[..., Any]
) -> None:
    first, second, third = (judged(session, project, 1, -1) for _ in range(3))
    session.commit()
    admin = sign_in("admin")
    base, queue = f"/projects/{project.slug}/review", "?queue=disagreement"
    # Later: the next one, without a decision.
    assert admin.get(f"{base}/next{queue}&key=0.0&after={first.id}").headers["location"] == f"{base}/{second.id}{queue}"
    answer = admin.post(f"{base}/{second.id}/verdict{queue}", {"verdict": "2", "note": "x"})
    assert (answer.status_code, answer.headers["location"]) == (303, f"{base}/{third.id}{queue}")
    # From the end back to the start, where the first one still waits.
    assert admin.post(f"{base}/{third.id}/more", {"more": "2"}).headers["location"] == f"{base}/{first.id}{queue}"
    assert admin.post(f"{base}/{first.id}/withdraw", {"note": "x"}).headers["location"] == f"{base}{queue}"
    assert "Nothing to review here" in admin.get(base).text
    states = session.scalars(select(Comparison.state).order_by(Comparison.id).execution_options(populate_existing=True))
    assert states.all() == ["withdrawn", "adjudicated", "open"]


def test_a_queue_with_its_filter_is_kept_from_case_to_case(
    session: Session, project: Project, sign_in: Callable[..., Any]
) -> None:
    law = factories.prompt(session, project, domain="law & order")
    rows = [conflicting(session, project, 0.9 - i / 100, prompt=law if i != 1 else None) for i in range(3)]
    session.commit()
    admin = sign_in("admin")
    base = f"/projects/{project.slug}/review"
    query = "?queue=conflict&slice=domain%3Dlaw+%26+order"
    shown = admin.get(f"{base}{query}").text
    assert f'href="{base}/{rows[0].id}{query.replace("&", "&amp;")}"' in shown
    assert f"{base}/{rows[1].id}" not in shown
    answer = admin.post(f"{base}/{rows[0].id}/people-are-right{query}", {})
    assert answer.headers["location"] == f"{base}/{rows[2].id}{query}"
    assert admin.get(f"{base}?slice=nonsense").status_code == 422
    assert "No comparison matches the filter" in admin.get(f"{base}?version=9").text
    assert "any decided comparison" in admin.get(f"{base}?queue=requested").text.lower()


def test_a_case_shows_everything(session: Session, project: Project, sign_in: Callable[..., Any]) -> None:
    """The page always says whose answers they are, and shows edited answers separately."""
    judge = factories.user(session, name="Judge", kind="ai_judge")
    ada = factories.user(session, name="Ada")
    reward = factories.model(session, project, "reward", name="reward-3")
    row = factories.comparison(session, project, overlap=3, texts=("First *text*", " "))
    factories.judgment(
        session,
        row,
        preference=3,
        labeler_id=judge.id,
        aspects={"factuality": -1, "style": 0},
        flags=["harmful"],
        rationale="because 3",
    )
    edited = factories.judgment(session, row, preference=2, labeler_id=ada.id, rationale="too early")
    session.execute(
        text("UPDATE judgment SET superseded_at = now(), superseded_for = 'edited' WHERE id = :id"), {"id": edited.id}
    )
    factories.judgment(session, row, preference=-1, labeler_id=ada.id, rationale="because -1")
    factories.judgment(session, row, preference=0, both_bad=True)
    factories.lease(session, row, state="skipped", reason="I do not know the law.")
    session.add(ProjectLabeler(project_id=project.id, labeler_id=ada.id, reliability=0.91))
    row.state, row.review_reason, row.agreement = "in_review", "split", 0.0
    row.p_b, row.p_tie, row.reward_p_b, row.reward_model_id = 0.42, 0.3, 0.06, reward.id
    model = factories.model(session, project, name="policy-7")
    session.get_one(factories.Completion, row.completion_a_id).model_version_id = model.id
    session.get_one(factories.Completion, row.completion_b_id).source = "elsewhere.jsonl"
    session.commit()
    shown = sign_in("admin").get(f"/projects/{project.slug}/review/{row.id}").text
    said = words(shown)
    for part in (
        "1 for A, 1 for B, 1 both bad agreement 0%",
        "58% for A tie 30%",
        "94% for A reward-3, not trained on it",
        "B is much better Judge ai judge not measured harmful factuality: A style: same because 3",
        "A is slightly better Ada 91%",
        "Both bad",
        "1 earlier judgment, no longer counted",
        "too early",
        "edited",
        "Skipped by 1",
        "I do not know the law.",
        "A: policy-7 B: elsewhere.jsonl",
        "This response is empty.",
        "5 s",
    ):
        assert part in said, part
    assert "<em>text</em>" in shown
    # The responses themselves are named neutrally: their origin is folded away.
    assert "policy-7" in said.split("Where the responses come from")[1]
    assert "policy-7" not in said.split("Where the responses come from")[0]


def test_a_late_verdict_names_the_first_and_roles_are_kept(
    session: Session, project: Project, sign_in: Callable[..., Any]
) -> None:
    ada = factories.user(session, "admin", name="Ada")
    row = judged(session, project, 1, -1)
    service.adjudicate(session, project, ada, row.id, verdict=1, note="Shorter.")
    session.commit()
    admin = sign_in("admin")
    base = f"/projects/{project.slug}/review"
    late = admin.post(f"{base}/{row.id}/verdict", {"verdict": "-1", "note": "A long thought."})
    assert late.status_code == 409
    assert "Ada already gave the verdict" in late.text
    assert "A long thought." in late.text
    assert "decided by Ada" in words(late.text), "what stands now"
    shown = admin.get(f"{base}/{row.id}").text
    assert "decided by Ada" in words(shown)
    assert "Ada gave the verdict: B is slightly better." in words(shown)
    assert 'name="verdict"' not in shown
    assert admin.post(f"{base}/{row.id}/verdict", {"verdict": "9"}).status_code == 422
    assert admin.get(f"{base}/999999").status_code == 404
    assert admin.post(f"{base}/{row.id}/nonsense", {}).status_code in (404, 422)
    for role in ("labeler", "operator"):
        client = sign_in(role)
        assert client.get(base).status_code == 403
        assert client.post(f"{base}/{row.id}/withdraw", {"note": "x"}).status_code == 403


def test_a_verdict_from_before_a_shorter_scale_is_still_told(
    session: Session, project: Project, sign_in: Callable[..., Any]
) -> None:
    ada = factories.user(session, "admin", name="Ada")
    row = factories.comparison(session, project, flagged=True)
    service.adjudicate(session, project, ada, row.id, verdict=3)
    service.request(session, project, ada, row.id)
    service.ask_more(session, project, ada, row.id, more=1)
    factories.rubric(session, project, version=2, strengths=1)
    factories.lease(session, row)  # nobody had judged it: it goes by the newest version
    session.commit()
    shown = words(sign_in("admin").get(f"/projects/{project.slug}/review/{row.id}").text)
    assert "rubric version 2" in shown
    assert "gave the verdict: B is much better" in shown


def test_a_refused_decision_gives_back_what_was_typed(
    session: Session, project: Project, sign_in: Callable[..., Any]
) -> None:
    row = judged(session, project, 1, -1)
    session.commit()
    admin = sign_in("admin")
    here = f"/projects/{project.slug}/review/{row.id}"
    refused = admin.post(f"{here}/more", {"more": "1", "who": "group-77", "note": "The lawyers know."})
    assert refused.status_code == 422
    assert "Nobody in this group can still be asked." in refused.text
    assert "The lawyers know." in refused.text
    assert "needs a reason" in admin.post(f"{here}/withdraw", {"note": "  "}).text
    seen = re.search(r'name="seen" value="([^"]+)"', refused.text)
    assert seen
    factories.judgment(session, factories.comparison(session, project), preference=1)  # elsewhere: changes nothing here
    row.flagged = True
    row.overlap = 3
    factories.judgment(session, row, preference=1, flags=["harmful"])
    session.commit()
    changed = admin.post(f"{here}/verdict", {"verdict": "2", "note": "B, I think.\0", "seen": seen[1]})
    assert changed.status_code == 409
    assert "judged or changed after you opened it" in changed.text
    assert ">B, I think.</textarea>" in changed.text
    assert re.search(r'value="2"[^>]* checked>', changed.text)
    session.refresh(row)
    assert row.state == "in_review"


def test_a_verdict_can_be_a_known_answer(session: Session, project: Project, sign_in: Callable[..., Any]) -> None:
    factories.rubric(session, project, allow_tie=False)
    at_once, later = judged(session, project, 1, -1), judged(session, project, 1, -1)
    session.commit()
    admin = sign_in("admin")
    base = f"/projects/{project.slug}/review"
    # No labeler could answer it with a tie; and then there is no verdict either.
    refused = admin.post(f"{base}/{at_once.id}/verdict", {"verdict": "0", "calibrate": "true"})
    assert "This rubric has no tie" in refused.text
    assert session.scalars(select(Adjudication)).all() == []
    assert admin.post(f"{base}/{at_once.id}/verdict", {"verdict": "2", "calibrate": "true"}).status_code == 303
    admin.post(f"{base}/{later.id}/verdict", {"verdict": "-1"})
    done = admin.post(f"{base}/{later.id}/calibrate", {})
    assert done.headers["location"].startswith(f"{base}/{later.id}?")
    assert "made it a calibration item" in admin.get(done.headers["location"]).text
    assert admin.post(f"{base}/{later.id}/calibrate", {}).status_code == 409
    items = select(Comparison.gold, Comparison.completion_a_id).where(Comparison.purpose == "calibration")
    assert session.execute(items.order_by(Comparison.id)).all() == [
        (2, at_once.completion_a_id),
        (-1, later.completion_a_id),
    ]


def test_who_judged_it_too_is_told_so(session: Session, project: Project, sign_in: Callable[..., Any]) -> None:
    both = factories.user(session, "admin", "labeler")
    own, others = factories.comparison(session, project), judged(session, project, 1, -1)
    factories.judgment(session, own, preference=1, labeler_id=both.id)
    own.state, own.review_reason = "in_review", "requested"
    session.commit()
    client, base = sign_in(user=both), f"/projects/{project.slug}/review"
    assert "You judged this comparison yourself." in client.get(f"{base}/{own.id}").text
    assert "You judged this comparison yourself." not in client.get(f"{base}/{others.id}").text
    assert "You judged this comparison yourself." not in sign_in("admin").get(f"{base}/{own.id}").text


def test_a_calibration_item_offers_no_verdict(session: Session, project: Project, sign_in: Callable[..., Any]) -> None:
    of = judged(session, project, 1)
    item = factories.comparison(session, project, purpose="calibration", gold=1, repeat_of_id=of.id, flagged=True)
    session.commit()
    admin, here = sign_in("admin"), f"/projects/{project.slug}/review/{item.id}"
    shown = admin.get(here).text
    assert 'name="verdict"' not in shown
    assert "Give verdict" not in shown
    assert "Dismiss flags" in shown
    assert admin.post(f"{here}/withdraw", {"note": "Leaks a name."}).status_code == 303
    assert "Send to review" not in admin.get(here).text


def test_a_slice_may_have_any_name(session: Session, project: Project, sign_in: Callable[..., Any]) -> None:
    domain = "law & order,\n\u202e" + "x" * 500
    judged(session, project, 1, -1, prompt=factories.prompt(session, project, "Guilty?", domain=domain))
    session.commit()
    admin = sign_in("admin")
    for path in ("", "/relabel"):
        answer = admin.get(f"/projects/{project.slug}/review{path}", params={"slice": f"domain={domain}"})
        assert answer.status_code == 200
    assert "Guilty?" in admin.get(f"/projects/{project.slug}/review", params={"slice": f"domain={domain}"}).text


def test_the_overview_says_what_waits(session: Session, project: Project, sign_in: Callable[..., Any]) -> None:
    judged(session, project, 1, -1)
    conflicting(session, project, 0.9, flagged=True)
    session.commit()
    shown = words(sign_in("admin").get(f"/projects/{project.slug}").text)
    assert "1 in disagreement, 1 against the reward model, 1 flagged." in shown
    assert "to review" not in sign_in("labeler").get(f"/projects/{project.slug}").text


def test_judgments_of_the_removed_are_history(session: Session, project: Project, sign_in: Callable[..., Any]) -> None:
    row = judged(session, project, 1)
    session.execute(text("UPDATE judgment SET superseded_at = now(), superseded_for = 'removed'"))
    assert session.scalars(select(Judgment.superseded_for)).all() == ["removed"]
    assert session.get(User, 1) is not None
    session.commit()
    assert "No judgment counts any more." in sign_in("admin").get(f"/projects/{project.slug}/review/{row.id}").text
