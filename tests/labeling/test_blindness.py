"""Labelers cannot learn what they may not know: two worlds that differ only in it look the same, to the byte.

The attack: a labeler does the same in both, and looks at all they can reach after each step, pages and JSON. Only
names that are random everywhere are taken out. By any difference they could guess the secret; where there is none, no
guess is better than chance. Order is part of it: texts stay in.
"""

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select, text, update
from sqlalchemy.orm import Session

from app.labeling import mixing, queries, settling
from app.models import Comparison, Completion, Lease, Project, User
from tests import factories
from tests.conftest import SignedIn

SignIn = Callable[..., SignedIn]
SCRIPT = {"Accept": "application/json"}
TEXTS = ("alpha", "beta", "gamma")  # of the tasks, in the order they come


@pytest.fixture(autouse=True)
def _a_long_day(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test takes two simulated hours. They always lie within one day, because figures count days."""
    began = queries.today(datetime.now(UTC)) - timedelta(days=1)
    monkeypatch.setattr(queries, "today", lambda _now: began)


class World:
    """A project and a labeler in it, who records everything that they see.

    Args:
        sides: each comparison's completion A is the text that is shown first; else it is B, and newer.
    """

    def __init__(self, session: Session, sign_in: SignIn, labeling: dict[str, Any], *, sides: bool = True) -> None:
        self.session, self.sides = session, sides
        self.project: Project = factories.project(session, overlap=2, labeling=labeling, name="Project")
        self.other: User = factories.user(session)
        self.labeler: User = factories.user(session)
        self.client = sign_in(user=self.labeler)
        self.seen: list[str] = []

    def task(self, name: str, **values: Any) -> Comparison:
        """Add another comparison; A is better, whichever response is shown first."""
        prompt = factories.prompt(self.session, self.project, f"Question {name}?")
        first, second = f"{name} first", f"{name} second"
        texts = (first, second) if self.sides else (second, first)
        model = factories.model(self.session, self.project)
        comparison = factories.comparison(self.session, self.project, prompt=prompt, texts=texts, **values)
        newer = comparison.completion_b_id if self.sides else comparison.completion_a_id
        self.session.execute(update(Completion).where(Completion.id == newer).values(model_version_id=model.id))
        self.session.commit()
        return comparison

    def look(self, *more: str) -> None:
        """Record what changes as work goes on and, at the end, everything else that a labeler can reach."""
        base = f"/projects/{self.project.slug}"
        for address in (base, f"{base}/label/mine", *more):
            answer = self.client.get(address)
            self.note(f"{answer.status_code} {answer.headers.get('location', '')} {answer.text}")

    def open(self) -> dict[str, str]:
        """Return the card on the desk: its address and the fields of its form; empty if there is no card."""
        self._fix_sides()
        desk = self.client.get(f"/projects/{self.project.slug}/label", headers=SCRIPT)
        self.note(desk.text)
        return self._form(desk.json()["desk"])

    def _fix_sides(self) -> None:
        """Make the random sides, as shown, the same in both worlds."""
        self.client.get(f"/projects/{self.project.slug}/label", headers=SCRIPT)
        live = Lease.state == "live", Lease.labeler_id == self.labeler.id
        self.session.execute(update(Lease).where(*live).values(swapped=not self.sides))
        self.session.commit()

    @staticmethod
    def _form(html: str) -> dict[str, str]:
        found = re.search(r'<form class="answer" id="answer" method="post" action="([^"]+)"', html)
        fields = dict(re.findall(r'<input type="hidden" name="(idempotency_key|rubric_id)" value="([^"]*)"', html))
        return {"action": found[1], **fields} if found else {}

    def answer(self, preference: int) -> str:
        """Judge the card on the desk; return its address."""
        form = self.open()
        action = form.pop("action")
        answer = self.client.post(action, form | {"preference": preference}, headers=SCRIPT)
        numbers = {name: value for name, value in answer.json().items() if name != "desk"}
        self.note(f"{answer.status_code} {json.dumps(numbers)}")
        return action

    def others_answer(self, comparison: Comparison, towards_first: int) -> None:
        """Let somebody else judge it, for the side that the labeler sees first or second."""
        preference = -towards_first if self.sides else towards_first
        # Repeats and single ones are not for others.
        factories.judgment(self.session, comparison, preference=preference, labeler_id=self.other.id)
        settling.settle(self.session, [comparison.id])
        self.session.commit()

    def change_last(self, preference: int) -> None:
        """Open the newest answer again and change it."""
        mine = self.client.get(f"/projects/{self.project.slug}/label/mine").text
        found = re.search(r'href="([^"]+/label/judgments/\d+)"', mine)
        assert found, "nothing to change"
        card = self.client.get(found[1])
        self.note(card.text)
        form = self._form(card.text)
        answer = self.client.post(form.pop("action"), form | {"preference": preference})
        self.note(f"{answer.status_code} {answer.headers['location']}")

    def later(self, minutes: int) -> None:
        self.session.execute(text("SET LOCAL session_replication_role = replica"))
        self.session.execute(
            text("UPDATE judgment SET created_at = created_at - :m * interval '1 minute'"), {"m": minutes}
        )
        self.session.commit()

    def end(self) -> None:
        base = f"/projects/{self.project.slug}"
        self.look(f"{base}/rubric", f"{base}/demonstrations/own", f"{base}/demonstrations/write", "/label")
        # The next world's labeler is not led here.
        of_project = Comparison.project_id == self.project.id
        self.session.execute(update(Comparison).where(of_project).values(state="withdrawn"))
        self.session.commit()

    def note(self, shown: str) -> None:
        shown = shown.replace(self.project.slug, "SLUG").replace(self.labeler.name, "NAME")
        shown = re.sub(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "UUID", shown)
        shown = re.sub(r"\b[0-9a-f]{64}\b|\b[0-9a-f]{32}\b", "HASH", shown)
        shown = re.sub(r"<time.*?</time>|\d+\.\d s", "TIME", shown)
        # The worlds follow one another in one database; what is compared here is neither how far its sequences are nor
        # which other projects the labeler has by then.
        shown = re.sub(
            r'<details class="menu switcher">.*?</details>|<a class="where".*?</a>', "PROJECTS", shown, flags=re.S
        )
        shown = re.sub(r"(judgments/|rubric_id.{1,12}value=.{0,2}|data-(?:labeler|user)=.{0,2})\d+", r"\1ID", shown)
        self.seen.append(shown)


def assert_alike(worlds: list[World]) -> None:
    first, *others = worlds
    assert len(first.seen) > 15
    for other in others:
        assert len(first.seen) == len(other.seen)
        for step, (one, two) in enumerate(zip(first.seen, other.seen, strict=True)):
            told = [pair for pair in zip(one.split("\n"), two.split("\n"), strict=False) if pair[0] != pair[1]]
            assert one == two, f"step {step} tells the worlds apart: {told[:3]}"


MIXED = {"calibration": {"rate": 0.3, "least": 1000}, "own_figures": {"agreement": True, "calibration": True}}
ADAPTIVE = {"adaptive": {"at_least": 2, "at_most": 5, "sure": 0.9}}


@pytest.mark.parametrize("labeling", [{}, ADAPTIVE], ids=["fixed", "adaptive"])
def test_how_others_answered_is_not_to_be_seen_while_ones_own_answer_can_be_changed(
    session: Session, sign_in: SignIn, labeling: dict[str, Any]
) -> None:
    """Others agree or disagree: before the labeler's answer, after it, and after an edit."""

    def live(said: int) -> World:
        world = World(session, sign_in, labeling)
        overlap = {"overlap": 2, "overlap_max": 5 if labeling else None}
        before, after, _last = (world.task(name, **overlap) for name in TEXTS)
        world.others_answer(before, said)
        for _ in range(3):
            world.answer(-2)
            world.look()
        world.others_answer(after, said)
        world.look()
        world.change_last(2)
        world.look()
        world.open()  # nothing is left
        world.later(30)
        world.end()
        return world

    assert_alike([live(said) for said in (-2, 2)])


def test_calibration_items_are_not_to_be_told(
    session: Session, sign_in: SignIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one world the second task is a calibration item, in the other none is."""

    def live(place: int | None) -> World:
        world = World(session, sign_in, MIXED)
        tasks: list[Comparison] = []
        for n, name in enumerate(TEXTS):
            is_item = {"purpose": "calibration", "gold": -2, "overlap": 9} if n == place else {}
            tasks.append(world.task(name, **is_item))
        world.task("the end")  # never answered: items come only while something else waits
        drawn = 0.0  # what chance says: 0 wants an item, 0.99 none
        monkeypatch.setattr(mixing._chance, "random", lambda: drawn)
        for n in range(len(tasks)):
            drawn = 0.0 if n == place else 0.99
            card = world.open()
            drawn = 0.0  # the page is closed and opened again; chance may say what it will
            for _ in range(2):
                world.client.post(f"{card['action']}/release")
                world.open()
            drawn = 0.0 if n + 1 == place else 0.99  # the next one comes with the answer to this
            world.answer(-1)
            world.look()
        for minutes in (1, 40):
            for task in tasks:
                if minutes == 1:
                    world.others_answer(task, -1)
            world.later(minutes)
            world.look()
        world.change_last(2)
        world.look()
        world.later(60)
        world.end()
        return world

    assert_alike([live(place) for place in (None, 1)])


def test_neither_which_response_is_a_nor_which_is_newer_is_to_be_told(session: Session, sign_in: SignIn) -> None:
    def live(*, sides: bool) -> World:
        world = World(session, sign_in, {}, sides=sides)
        tasks = [world.task(name) for name in TEXTS]
        for task in tasks:
            world.answer(-1)
            world.look()
            world.others_answer(task, 1)
            world.look()
        world.change_last(1)
        world.look()
        # By number, through all that takes one.
        preview = f"/projects/{world.project.slug}/demonstrations/preview"
        for id_ in session.scalars(select(Completion.id)).all():
            for name in ("completion_id", "task_id", "demonstration_id"):
                answer = world.client.post(preview, {"text": "x", name: id_})
                assert not any(name in answer.text for name in TEXTS)
        world.end()
        return world

    assert_alike([live(sides=True), live(sides=False)])
