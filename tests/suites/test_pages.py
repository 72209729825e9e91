"""The pages of suites: with nothing, a little and after rounds; files in and out; what a round says of a gate."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from bs4 import BeautifulSoup
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.artifacts import ArtifactStore
from app.models import Project, Suite, User
from app.settings import Settings
from app.suites import queries, service
from app.suites.forms import GateForm
from tests import factories
from tests.conftest import SignedIn
from tests.red_team.attempts import rated
from tests.suites.scenes import evaluated, took
from tests.suites.test_service import cases

SignIn = Callable[..., SignedIn]
GOOD = b'{"prompt": "2 + 2?", "check": "number", "expected": 4}\n'


@pytest.fixture
def store(settings: Settings) -> ArtifactStore:
    return ArtifactStore(settings.artifacts_root)


@pytest.fixture
def project(session: Session) -> Project:
    return factories.project(session)


@pytest.fixture
def operator(session: Session) -> User:
    return factories.user(session, "operator")


def words(html: str) -> str:
    text = " ".join(BeautifulSoup(html, "html.parser").get_text(" ").split())
    return re.sub(r" ([.,:;)])", r"\1", text)


def measured(
    session: Session, store: ArtifactStore, project: Project, operator: User, **values: Any
) -> tuple[Suite, Suite]:
    """Two suites that round 3 has run: facts, of which 2 got worse and 1 better, and safety, of which 12 got worse."""
    facts, safety = service.add_starters(session, store, project, operator, ["facts", "safety"])
    _, run = evaluated(session, project, 3, **values)
    took(session, store, run, facts, lost=("facts-01", "facts-20"), gained=("facts-05",), failed=("facts-09",))
    took(session, store, run, safety, lost=[f"safety-{n:02d}" for n in range(1, 13)])
    return facts, safety


def test_an_empty_project_says_what_suites_do_and_offers_ours(
    sign_in: SignIn, session: Session, project: Project
) -> None:
    session.commit()
    page = words(sign_in("operator").get(f"/projects/{project.slug}/suites").text)
    assert "No suite yet" in page
    assert "Facts and arithmetic 38 cases" in page
    assert "Starter suites" not in words(sign_in("admin").get(f"/projects/{project.slug}/suites").text)


def test_starters_by_one_click(sign_in: SignIn, session: Session, project: Project) -> None:
    session.commit()
    client, base = sign_in("operator"), f"/projects/{project.slug}/suites"
    assert client.post(f"{base}/starters", {"names": ["facts", "safety"]}).headers["location"] == base
    page = words(client.get(base).text)
    assert "Not measured yet The next round's evaluation runs them." in page
    assert "Starter suites" in page  # the other two are still offered
    assert client.post(f"{base}/starters", {}).status_code == 422


def test_the_tax_comes_first_in_plain_words(
    sign_in: SignIn, session: Session, store: ArtifactStore, project: Project, operator: User
) -> None:
    measured(session, store, project, operator)
    round_ = queries.newest_round(session, project.id)
    assert round_ is not None
    project.policy_id = round_.policy_after_id
    session.commit()
    page = words(sign_in("admin").get(f"/projects/{project.slug}/suites").text)
    # 76 cases: 36 and 26 passed, 37 and 38 before; -13 of 76 is -17.1 points.
    assert "Alignment tax: 17.1 points" in page
    assert "The project's policy policy-3 passes 61 of 76 cases, policy-2 passed 74: 14 cases lost, 1 gained." in page
    assert "That is −17.1 points" in page
    assert "The loss is larger than chance explains." in page
    assert page.index("Alignment tax") < page.index("Facts and arithmetic")
    assert "the newest: its policy is not the project's" not in page


def test_the_newest_round_is_shown_beside_the_adopted_one(
    sign_in: SignIn, session: Session, store: ArtifactStore, project: Project, operator: User
) -> None:
    facts, safety = measured(session, store, project, operator)
    first = queries.newest_round(session, project.id)
    assert first is not None
    project.policy_id = first.policy_after_id
    _, run = evaluated(session, project, 4, policy_before_id=first.policy_after_id)
    took(session, store, run, facts, gained=("facts-01",))
    service.set_gate(session, safety, operator, GateForm(largest_loss=1))
    took(session, store, run, safety, lost=[f"safety-{n:02d}" for n in range(1, 13)])
    session.commit()
    page = words(sign_in("admin").get(f"/projects/{project.slug}/suites").text)
    assert "Round 4, the newest: its policy is not the project's" in page
    assert "Held back. “Safety and over-refusal” lost 31.6 points" in page
    assert page.index("Alignment tax: 17.1 points") < page.index("Round 4, the newest")


def test_a_suites_page_has_scores_and_both_answers_to_what_got_worse(
    sign_in: SignIn, session: Session, store: ArtifactStore, project: Project, operator: User
) -> None:
    facts, _ = measured(session, store, project, operator)
    _, run = evaluated(session, project, 4)
    took(session, store, run, facts, lost=("facts-02",), text="It is 17.")
    session.commit()
    client, here = sign_in("admin"), f"/projects/{project.slug}/suites/{facts.id}"
    page = words(client.get(here).text)
    assert "2.6 points lost in round 4" in page
    assert "policy-4 passes 37 of 38 cases (97%; 95% interval 87% to 100%). policy-3 passed 38: 1 case lost" in page
    assert "What is 15 + 28?" in page
    assert "Wanted: the number 43" in page
    assert page.index("It is 17. (before)") < page.index("It is 17. (new)")
    assert "policy-3 passes" in page
    assert "policy-4 fails" in page
    # arithmetic 17 cases, facts 21: by slice
    assert "arithmetic 17 100% (17) 94% (16) −5.9 points" in page
    earlier = words(client.get(here, params={"round": 3}).text)
    assert "2.6 points lost in round 3" in earlier
    assert "Cases that got better (1)" in earlier
    assert client.get(here, params={"round": 9}).status_code == 404
    assert client.get(f"{here}9").status_code == 404
    other = factories.project(session)
    session.commit()
    assert client.get(f"/projects/{other.slug}/suites/{facts.id}").status_code == 404


def test_small_losses_of_many_rounds_are_added_up_case_by_case(
    sign_in: SignIn, session: Session, store: ArtifactStore, project: Project, operator: User
) -> None:
    suite = service.add(session, store, project, operator, "Sums", cases(20))
    before = None
    for number in (1, 2, 3):
        given = {"policy_before_id": before} if before else {}
        round_, run = evaluated(session, project, number, **given)
        earlier = [str(n) for n in range(number - 1)]
        took(session, store, run, suite, lost=(str(number - 1),), failed=earlier)
        before = round_.policy_after_id
    session.commit()
    client, here = sign_in("admin"), f"/projects/{project.slug}/suites/{suite.id}"
    page = words(client.get(here).text)
    assert "policy-3 passes 17 of 20 cases" in page
    assert "The difference is −5.0 points" in page
    assert "Since policy-0, the policy before round 1: −15.0 points" in page
    assert "It passed 20; 3 cases lost, 0 gained since." in page
    assert "Since" not in words(client.get(here, params={"round": 1}).text)


def test_of_two_answers_the_page_says_which_is_likelier_by_how_much(
    sign_in: SignIn, session: Session, store: ArtifactStore, project: Project, operator: User
) -> None:
    (suite,) = service.add_starters(session, store, project, operator, ["sycophancy"])
    _, run = evaluated(session, project, 2)
    took(session, store, run, suite, lost=("sycophancy-01",))
    session.commit()
    page = words(sign_in("admin").get(f"/projects/{project.slug}/suites/{suite.id}").text)
    assert "Good answer No, 7 times 8 is 56. Bad answer Yes, 7 times 8 is 54." in page
    assert "policy-1 the good answer is likelier by 0.250 nats a token" in page
    assert "policy-2 the bad answer is likelier by 0.125 nats a token" in page


def test_a_file_that_is_gone_is_said_and_the_figures_stay(
    sign_in: SignIn, session: Session, store: ArtifactStore, project: Project, operator: User
) -> None:
    facts, _ = measured(session, store, project, operator)
    session.commit()
    store.remove(service.version_of(session, facts).location)
    page = words(sign_in("admin").get(f"/projects/{project.slug}/suites/{facts.id}").text)
    assert "There is no artifact suites/" in page
    assert "2.6 points lost in round 3" in page


def test_a_faulty_file_comes_back_with_every_faulty_line(sign_in: SignIn, session: Session, project: Project) -> None:
    session.commit()
    client, base = sign_in("operator"), f"/projects/{project.slug}/suites"
    bad = GOOD + b'{"prompt": "Q", "check": "regex"}\n\n{"check": "refuses"}\n'
    answer = client.post(base, {"name": "Mine"}, files={"file": ("facts.jsonl", bad)})
    page = words(answer.text)
    assert answer.status_code == 422
    assert "2 lines cannot be accepted. Line 2: “check” must be one of exact" in page
    assert "4 give either “prompt”, a text, or “messages”" in page
    assert 'value="Mine"' in answer.text
    assert session.scalars(select(Suite)).all() == []
    plain = client.post(base, {}, files={"file": ("f.jsonl", bad)}, headers={"Accept": "application/json"})
    assert plain.json()["error"].startswith("2 lines cannot be accepted.")
    assert "No file was chosen." in words(client.post(base, {"name": "Mine"}).text)
    too_long = client.post(base, {"name": "x" * 101}, files={"file": ("f.jsonl", GOOD)})
    assert too_long.status_code == 422
    large = client.post(base, {}, files={"file": ("f.jsonl", b" " * (6 << 20))})
    assert large.status_code == 413


def test_a_suite_from_a_file_its_next_version_and_what_is_downloaded(
    sign_in: SignIn, session: Session, store: ArtifactStore, project: Project
) -> None:
    session.commit()
    client, base = sign_in("operator"), f"/projects/{project.slug}/suites"
    here = client.post(base, {}, files={"file": ("Sums.jsonl", GOOD)}).headers["location"]
    assert "Sums" in words(client.get(here).text)
    assert "The next round asks its new policy and the policy before it these 1 case." in words(client.get(here).text)
    more = GOOD + b'{"id": 7, "prompt": "3 + 3?", "check": "number", "expected": 6}\n'
    assert client.post(f"{here}/versions", files={"file": ("b.jsonl", more)}).headers["location"] == here
    again = client.post(f"{here}/versions", files={"file": ("b.jsonl", more)})
    assert again.status_code == 409
    assert "Version 2 of “Sums” has exactly these cases" in words(again.text)
    faulty = client.post(f"{here}/versions", files={"file": ("b.jsonl", b"{}")})
    assert "“check” must be one of" in words(faulty.text)
    assert client.post(base, {}, files={"file": ("Sums.jsonl", GOOD)}).status_code == 409
    file = client.get(f"{here}/cases.jsonl")
    assert [json.loads(line)["id"] for line in file.text.splitlines()] == ["1", "7"]
    assert file.headers["content-disposition"].endswith('-version-2.jsonl"')
    assert len(client.get(f"{here}/cases.jsonl", params={"version": 1}).text.splitlines()) == 1
    assert client.get(f"{here}/cases.jsonl", params={"version": 3}).status_code == 404
    assert client.get(f"{here}/answers.jsonl").status_code == 404
    twin = client.post(base, {"name": "Twin"}, files={"file": ("x.jsonl", file.content)}).headers["location"]
    assert client.get(f"{twin}/cases.jsonl").content == file.content
    (suite,) = session.scalars(select(Suite).where(Suite.name == "Sums"))
    _, run = evaluated(session, project, 1)
    took(session, store, run, suite, lost=("7",))
    session.commit()
    answers = [json.loads(line) for line in client.get(f"{here}/answers.jsonl?round=1").text.splitlines()]
    assert [(each["id"], each["passed"], each["passed_before"]) for each in answers] == [
        ("1", True, True),
        ("7", False, True),
    ]


def test_the_limit_is_set_in_points_and_refused_in_place(
    sign_in: SignIn, session: Session, store: ArtifactStore, project: Project, operator: User
) -> None:
    suite = service.add(session, store, project, operator, "Sums", cases(30))
    session.commit()
    client, here = sign_in("operator"), f"/projects/{project.slug}/suites/{suite.id}"
    assert "With 30 cases the interval reaches 8.7 points" in words(client.get(here).text)
    assert client.post(here, {"largest_loss": "2.5", "bound": "low"}).status_code == 303
    session.refresh(suite)
    assert (suite.largest_loss, suite.bound) == (0.025, "low")
    assert 'value="2.5"' in client.get(here).text
    refused = client.post(here, {"largest_loss": "101", "bound": "low"})
    assert refused.status_code == 422
    assert 'value="101"' in refused.text
    assert client.post(here, {"largest_loss": "", "bound": "high"}).status_code == 303
    session.refresh(suite)
    assert suite.largest_loss is None
    assert "2.5 points" not in words(client.get(f"/projects/{project.slug}/suites").text)


def test_a_suite_is_retired_and_brought_back(
    sign_in: SignIn, session: Session, store: ArtifactStore, project: Project, operator: User
) -> None:
    suite = service.add(session, store, project, operator, "Sums", cases(3))
    session.commit()
    client, base = sign_in("operator"), f"/projects/{project.slug}/suites"
    assert client.post(f"{base}/{suite.id}/retire").headers["location"] == base
    assert "Retired suites Sums 3 cases" in words(client.get(base).text)
    assert "Add version" not in client.get(f"{base}/{suite.id}").text
    client.post(f"{base}/{suite.id}/bring-back")
    assert "Retired suites" not in words(client.get(base).text)


def test_red_team_attempts_by_one_click(sign_in: SignIn, session: Session, project: Project) -> None:
    session.commit()
    client, base = sign_in("operator"), f"/projects/{project.slug}/suites"
    assert client.post(f"{base}/red-team").status_code == 409
    rated(session, project, 3, "hate")
    session.commit()
    assert "Add red-team attempts (1)" in words(client.get(base).text)
    assert "Red team" in words(client.get(client.post(f"{base}/red-team").headers["location"]).text)


def test_a_train_prompt_among_the_cases_is_said(
    sign_in: SignIn, session: Session, store: ArtifactStore, project: Project, operator: User
) -> None:
    from app.prompts import service as prompts

    prompts.add(session, project.id, [{"role": "user", "content": "1 + 1?"}])
    suite = service.add(session, store, project, operator, "Sums", cases(3))
    session.commit()
    page = words(sign_in("admin").get(f"/projects/{project.slug}/suites/{suite.id}").text)
    assert "1 case is a train prompt of this project too." in page


def test_the_round_says_that_a_suite_holds_its_policy_back(
    sign_in: SignIn, session: Session, store: ArtifactStore, project: Project, operator: User
) -> None:
    base_model = factories.model(session, project, "base", name="policy-2")
    project.base_model_id = project.reference_id = project.policy_id = base_model.id
    _, safety = measured(session, store, project, operator, policy_before_id=base_model.id)
    session.commit()
    client, here = sign_in("operator"), f"/projects/{project.slug}/rounds/3"
    page = words(client.get(here).text)
    assert "Held back" not in page
    assert "Safety and over-refusal 38 100% (38) 68% (26) −31.6 points" in page
    service.set_gate(session, safety, operator, GateForm(largest_loss=10))
    session.commit()
    page = words(client.get(here).text)
    assert "Held back by 1 suite. “Safety and over-refusal” lost 31.6 points (95% interval −" in page
    assert "takes its place once people are shown to prefer it" not in page
    assert client.get(f"{here}/status").json()["held_by"][0].startswith("“Safety and over-refusal” lost 31.6")


def test_a_round_that_is_about_to_start_says_how_many_cases_it_will_answer(
    sign_in: SignIn, session: Session, store: ArtifactStore, project: Project, operator: User
) -> None:
    project.policy_id = factories.model(session, project, "base").id
    session.commit()
    client, here = sign_in("operator"), f"/projects/{project.slug}/rounds/new"
    assert "answered by both policies" not in words(client.get(here).text)
    service.add_starters(session, store, project, operator, ["facts", "sycophancy"])
    session.commit()
    assert "Suites 62 cases in 2 suites, answered by both policies" in words(client.get(here).text)
