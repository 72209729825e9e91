"""Every page of the product, light and dark, wide and on a phone: axe finds nothing serious against WCAG 2.2 AA.

Pages are found by asking the app for its addresses, so that a new page cannot be forgotten.
"""

import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from axe_playwright_python.sync_playwright import Axe
from fastapi import FastAPI
from playwright.sync_api import Page, expect
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.accounts import service as accounts
from app.artifacts import ArtifactStore
from app.main import ROUTERS
from app.models import Comparison, JudgeAdmission, Judgment, Lease, Metric, ModelVersion, PlaygroundChat, PlaygroundTurn
from app.red_team import service as red_team
from app.rounds.service import samples_of
from app.suites import service as suites
from tests import factories
from tests.browser.test_labeling import OpenPage, all_sent, wait_for_next
from tests.browser.test_labeling_flow import ASPECTS, FLAGS, press
from tests.browser.test_labeling_ranking import ranking
from tests.constitution.scenes import revised
from tests.demonstrations.desk import task
from tests.judges import scenes
from tests.lineage.test_model_page import REPORT
from tests.qualification.quizzes import QUIZ
from tests.red_team.attempts import form as attempt_form
from tests.red_team.attempts import rated
from tests.review.cases import conflicting, judged
from tests.rounds.loop import make_project
from tests.rounds.test_training_samples import line
from tests.suites.scenes import took

pytestmark = pytest.mark.long

TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
LOOKS = pytest.mark.parametrize(("width", "dark"), [(1440, False), (390, True)])
PROJECT = "/projects/{project_slug}"

# What answers with data or a part of a page, or sends on to another address.
NO_PAGES = {
    "/",
    "/label",
    f"{PROJECT}/agreement/attention",
    f"{PROJECT}/agreement/live",
    f"{PROJECT}/agreement/section",
    f"{PROJECT}/agreement/table",
    f"{PROJECT}/data/export",
    f"{PROJECT}/demonstrations/review",
    f"{PROJECT}/label/ahead",
    f"{PROJECT}/labelers/attention",
    f"{PROJECT}/red-team/own",
    f"{PROJECT}/red-team/{{attempt_id}}/answer",
    f"{PROJECT}/review/next",
    f"{PROJECT}/leaderboard/board",
    f"{PROJECT}/leaderboard/figures.csv",
    f"{PROJECT}/models/{{model_id}}/files/{{name}}",
    f"{PROJECT}/monitors/figures.csv",
    f"{PROJECT}/rounds/{{number}}/files/{{name}}",
    f"{PROJECT}/playground/{{chat_id}}/turns",
    f"{PROJECT}/progress/compare.csv",
    f"{PROJECT}/progress/files/{{name}}",
    f"{PROJECT}/rounds/preview",
    f"{PROJECT}/rounds/{{number}}/metrics",
    f"{PROJECT}/rounds/{{number}}/samples.jsonl",
    f"{PROJECT}/rounds/{{number}}/status",
    f"{PROJECT}/rubric/{{form}}",
    f"{PROJECT}/samples.jsonl",
    f"{PROJECT}/judges/{{judge_id}}/judgments.jsonl",
    f"{PROJECT}/constitution/{{constitution_id}}/revisions.jsonl",
    f"{PROJECT}/suites/{{suite_id}}/answers.jsonl",
    f"{PROJECT}/suites/{{suite_id}}/cases.jsonl",
}
QUERIES = {f"{PROJECT}/rubric/diff": "?was=2&now=3"}
TEXT = (
    "# A heading\n\nSome *text* with `code` and [a link](https://example.org).\n\n```python\nx = 'y'  # z\n```\n\n"
    + ("| a | b |\n|---|---|\n| 1 | 2 |\n\n> quoted\n\n\\(x^2\\)\n\n- one\n- two")
)


class World:
    """A project with something on every page, and who looks at it."""

    def __init__(self, session: Session, app: FastAPI, folder: Path) -> None:
        store: ArtifactStore = app.state.store
        self.staff = factories.user(session, "admin", "operator", "administrator", name="Ada")
        self.labeler = factories.user(session, "labeler", name="Lou")
        self.project = project = make_project(session, train=24, heldout=4)
        project.description = "What people like."
        session.flush()
        for n in range(2):
            factories.rubric(
                session, project, version=n + 2, guideline=TEXT, aspects=ASPECTS, flags=FLAGS, quiz=[QUIZ[0]] * n
            )
        factories.rubric(session, project, version=4, guideline=TEXT, aspects=ASPECTS, flags=FLAGS)
        factories.rubric(session, project, version=None, guideline=f"{TEXT}\n\nMore.", aspects=ASPECTS, flags=FLAGS)
        self.split = judged(session, project, 2, -2, 1, texts=(TEXT, TEXT))
        conflicting(session, project, 0.99, texts=(TEXT, "Short."))
        for _ in range(3):
            factories.comparison(session, project, prompt=factories.prompt(session, project, TEXT), texts=(TEXT, TEXT))
        self.answered = factories.comparison(session, project, texts=(TEXT, "Short."), overlap=3)
        lease = factories.lease(session, self.answered, labeler_id=self.labeler.id, state="submitted")
        self.judgment = factories.judgment(
            session, self.answered, preference=1, labeler_id=self.labeler.id, lease_id=lease.id, rationale="Because."
        )
        measured = factories.comparison(session, project, purpose="calibration", gold=1, texts=(TEXT, "Short."))
        factories.judgment(session, measured, preference=-1)
        self._rounds(session, store)
        for n in range(3):
            task(session, project, f"Write about {n}, please.")
        remarks = {"author_id": self.labeler.id, "review_note": "So."}
        self.demonstration, *_others = [
            factories.demonstration(session, factories.prompt(session, project), TEXT, state=state, **remarks)
            for state in ("pending", "approved", "rejected")
        ]
        self.attempt = rated(session, project, 2, "hate", author_id=self.staff.id, tags=["slur"])
        red_team.send(session, store, project, self.labeler, attempt_form())
        token = accounts.create_link(
            session, project_id=project.id, roles=["labeler"], created_by=self.staff.id, days=1
        )
        session.commit()
        self.base = f"/projects/{project.slug}"
        self.values = {
            "project_slug": project.slug,
            "token": token,
            "judgment_id": self.judgment.id,
            "version:int": 2,
            "prompt_id": self.split.prompt_id,
            "comparison_id": self.split.id,
            "labeler_id": self.labeler.id,
            "number": 1,
            "monitor_name": "longer",
            "model_id": self.policy.id,
            "demonstration_id": self.demonstration.id,
            "attempt_id": self.attempt.id,
            "chat_id": self._chat(session).id,
            "suite_id": self.suite.id,
            "judge_id": self.judge.id,
            "constitution_id": self.revising.id,
        }
        session.commit()

    def _chat(self, session: Session) -> PlaygroundChat:
        other, said = factories.model(session, self.project), {"text": TEXT, "finish_reason": "length", "n_tokens": 9}
        chat = PlaygroundChat(
            project_id=self.project.id,
            owner_id=self.staff.id,
            first_id=self.policy.id,
            second_id=other.id,
            is_blind=True,
        )
        session.add(chat)
        session.flush()
        for state, answers in (("succeeded", {"first": said, "second": said}), ("failed", {})):
            run = factories.run(session, self.project, "playground", state=state)
            session.add(PlaygroundTurn(chat_id=chat.id, text=TEXT, run_id=run.id, idempotency_key=uuid4(), **answers))
        return chat

    def _rounds(self, session: Session, store: ArtifactStore) -> None:
        project = self.project
        round_ = factories.round_(session, project, number=1, algorithm="ppo", state="done", config={})
        run = factories.run(session, project, "ppo", round_id=round_.id, state="succeeded")
        parent = session.get_one(ModelVersion, project.policy_id)
        self.policy = factories.model(
            session, project, name="policy-1", parent_id=parent.id, run_id=run.id, card={"algorithm": "ppo"} | REPORT
        )
        round_.policy_before_id, round_.policy_after_id, round_.adopted = parent.id, self.policy.id, True
        evaluation = factories.run(
            session,
            project,
            "evaluate",
            round_id=round_.id,
            state="succeeded",
            result={"tokens": 9000, "seconds": 40.5, "peak_memory": 2 << 30},
        )
        names = (
            "eval_objective/scores",
            "eval_before/scores",
            *(f"eval_difference/scores{x}" for x in ("", "_low", "_high")),
        )
        for value, name in enumerate(names):
            for slice_ in ("", "domain=safety"):
                session.add(Metric(run_id=evaluation.id, name=name, slice=slice_, step=0, value=value))
        self.suite = suites.add_starters(session, store, project, self.staff, ["facts", "safety"])[0]
        took(session, store, evaluation, self.suite, lost=("facts-01", "facts-17"), gained=("facts-02",))
        self.judge = scenes.judge(session, project)
        shared = factories.comparison(session, project, purpose="calibration", gold=1)
        scenes.said(session, self.judge, shared, 1)
        self.revising = revised(session, project, self.judge, self.split.rubric_id)
        beside = {"labeler": self.labeler.id, "items": 40, "judge": 0.9, "human": 0.8, "p": 0.01, "is_won": True}
        session.add(
            JudgeAdmission(
                **{
                    "judge_id": self.judge.id,
                    "rubric_id": shared.rubric_id,
                    "admitted": True,
                    "epsilon": 0.15,
                    "q": 0.05,
                },
                **{"omega": 1.0, "advantage": 0.9, "agreement": 0.8, "items": 40, "result": [beside]},
            )
        )
        longer = {"eval_prompts": 20, "eval_length": 60, "eval_before/length": 30, "eval_difference/length": 30}
        longer |= {"eval_difference/length_low": 28, "eval_difference/length_high": 32}
        session.add_all(
            Metric(run_id=evaluation.id, name=name, slice="", step=0, value=v) for name, v in longer.items()
        )
        factories.completion(session, factories.prompt(session, project), TEXT, run_id=evaluation.id, n_tokens=60)
        path = store.root / samples_of(run.id)
        path.parent.mkdir(parents=True)
        lines: list[dict[str, Any]] = [
            line(step, prompt, TEXT, score=step / 7) for step in range(4) for prompt in range(3)
        ]
        path.write_text("".join(json.dumps(each) + "\n" for each in lines))


@pytest.fixture
def world(session: Session, app: FastAPI, tmp_path: Path) -> World:
    return World(session, app, tmp_path)


def pages() -> list[str]:
    found = {route.path for router in ROUTERS for route in router.routes if "GET" in getattr(route, "methods", ())}
    assert found >= NO_PAGES
    return sorted(found - NO_PAGES)


def serious(page: Page) -> list[str]:
    """What axe holds against the page as it is: rule, impact, and where."""
    if page.locator(".answer-bar").count():
        # On a phone the bar lies over whatever is scrolled under it; at the page's end that is nothing.
        page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
    found = Axe().run(page, options={"runOnly": {"type": "tag", "values": TAGS}, "resultTypes": ["violations"]})
    return [
        f"{page.url.split('/', 3)[3]}: {rule['id']} ({rule['impact']}): {rule['nodes'][0]['html'][:160]}"
        f" {rule['nodes'][0]['failureSummary'][:200]}"
        for rule in found.response["violations"]
        if rule["impact"] in ("serious", "critical")
    ]


@LOOKS
def test_every_page(world: World, open_page: OpenPage, width: int, dark: bool) -> None:
    staff = open_page(user=world.staff, width=width, dark=dark)
    labeler = open_page(user=world.labeler, width=width, dark=dark)
    visitor = open_page(width=width, dark=dark)
    problems: list[str] = []
    for path in pages():
        url = path
        for name, value in world.values.items():
            url = url.replace(f"{{{name}}}", str(value))
        assert "{" not in url, f"no example of {path}"
        url += QUERIES.get(path, "")
        for_labelers = any(part in path for part in ("/label/", "/quiz", "/write", "/own")) or path.endswith("/label")
        page = visitor if path in ("/sign-in", "/join/{token}") else labeler if for_labelers else staff
        if path.endswith("/quiz/people"):
            page = staff
        response = page.goto(url)
        assert response
        if response.status == 403:
            page = labeler if page is staff else staff
            response = page.goto(url)
        assert response
        if response.status != 200:
            problems.append(f"{url} answers {response.status}")
        page.wait_for_load_state("load")
        page.evaluate("document.querySelectorAll('main details').forEach((fold) => (fold.open = true))")
        problems += serious(page)
        if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
            problems.append(f"{url} is wider than the screen")
    assert not problems, "\n".join(problems)


@LOOKS
def test_the_desk_in_all_its_states(
    world: World, session: Session, open_page: OpenPage, width: int, dark: bool
) -> None:
    page = open_page(user=world.labeler, width=width, dark=dark)
    problems: list[str] = []
    page.goto(f"{world.base}/label")
    wait_for_next(page)
    press(page, "r", "p", "d", "6", "a", "1", "f", "1")
    problems += serious(page)
    press(page, "Escape", "s")
    problems += serious(page)
    press(page, "Escape", "?")
    problems += serious(page)
    press(page, "Escape", "Escape", "b", "Enter")
    all_sent(page)
    page.goto(f"{world.base}/label/judgments/{world.judgment.id}")
    problems += serious(page)
    for lease in session.scalars(select(Lease).where(Lease.state == "live")):
        lease.state = "released"
    for comparison in session.scalars(select(Comparison).where(Comparison.state == "open")):
        comparison.state = "withdrawn"
    session.commit()
    page.goto(f"{world.base}/label")
    expect(page.locator(".idle")).to_be_visible()
    problems += serious(page)
    ranking(session, world.project, 4, TEXT)
    page.goto(f"{world.base}/label")
    press(page, "1", "2")
    problems += serious(page)
    page.route("**/label/*", lambda route: route.abort())
    press(page, "Enter")
    expect(page.locator("#sending")).to_be_visible()
    problems += serious(page)
    assert not problems, "\n".join(problems)
    assert session.scalar(select(Judgment.id).limit(1))


def test_what_is_refused_is_said_accessibly(world: World, open_page: OpenPage) -> None:
    page = open_page(user=world.labeler)
    problems: list[str] = []
    for url in (f"{world.base}/settings", "/nowhere"):
        page.goto(url)
        problems += serious(page)
    visitor = open_page()
    visitor.goto("/sign-in")
    visitor.get_by_label("E-mail").fill("nobody@example.org")
    visitor.get_by_label("Password").fill("wrong password")
    visitor.get_by_role("button", name="Sign in").click()
    expect(visitor.locator(".message[role=alert]")).to_be_visible()
    problems += serious(visitor)
    assert not problems, "\n".join(problems)
