"""Like `test_blindness`, with the page's script: it loads cards ahead, and requests the counts at any time."""

import random
import re
from typing import Any

import pytest
from sqlalchemy import func, select, text, update
from sqlalchemy.orm import Session

from app.labeling import mixing
from app.models import Comparison, Lease
from tests import factories
from tests.labeling.test_blindness import MIXED, SCRIPT, SignIn, World, assert_alike

STEPS = 18
TASKS = 18  # more than are met: items come only while something else waits


class Scripted(World):
    """A labeler whose page randomly answers, skips, takes back, gives back and asks, in the same way in each world.

    Attributes:
        desk, ahead: lease and HTML of the card that is shown, and of the one to follow; none if there is none.
    """

    def __init__(self, session: Session, sign_in: SignIn, seed: int) -> None:
        super().__init__(session, sign_in, MIXED)
        self.elsewhere = factories.project(session)
        session.commit()
        self.others_client = sign_in(user=self.other)
        self.luck = random.Random(seed)
        self.desk: tuple[str, str] | None = None
        self.ahead: tuple[str, str] | None = None

    def ask(self, method: str, path: str, data: dict[str, Any] | None = None) -> dict[str, Any]:
        """The first side is random, so it is left out."""
        address = f"/projects/{self.project.slug}/label{path}"
        sent = {} if data is None else {"data": data}
        answer = getattr(self.client, method)(address, headers=SCRIPT, **sent)
        self.note(f"{method} {answer.status_code} " + re.sub(r"\b(t\d+) (first|second)\b", r"\1 SIDE", answer.text))
        return answer.json() if answer.content else {}

    @staticmethod
    def card(html: str | None) -> tuple[str, str] | None:
        found = re.search(r'data-lease="([^"]+)"', html or "")
        return (found[1], html) if found and html else None

    def reload(self) -> None:
        self.desk, self.ahead = self.card(self.ask("get", "")["desk"]), None

    def load_ahead(self) -> None:
        if self.desk and not self.ahead:
            self.ahead = self.card(self.ask("get", f"/ahead?beside={self.desk[0]}")["card"])

    def send(self, path: str, fields: dict[str, Any]) -> None:
        following, self.ahead = self.ahead, None
        fields |= {"desk": following[0] if following else ""}
        fields |= {"count": "1"} if self.luck.random() < 0.5 else {}
        said = self.ask("post", path, fields)
        self.desk = self.card(said["desk"]) if said["desk"] else following
        if self.desk and said.get("beside") == self.desk[0]:
            self.ahead = self.card(said["card"])

    def step(self) -> None:
        if self.desk is None:
            return self.reload()
        does, (lease_id, html) = self.luck.random(), self.desk
        if self.luck.random() < 0.7:
            self.load_ahead()
        if does < 0.4:
            fields = dict(re.findall(r'name="(idempotency_key|rubric_id)" value="([^"]*)"', html))
            self.send(f"/{lease_id}", fields | {"preference": str(self.luck.randint(-2, 2))})
        elif does < 0.55:
            self.send(f"/{lease_id}/skip", {"reason": "unclear"})
        elif does < 0.7:
            undone = self.ask("post", "/undo")
            if "desk" in undone:
                self.desk, self.ahead = self.card(undone["desk"]), None
        elif does < 0.8 and self.ahead:
            self.ask("post", f"/{self.ahead[0]}/release")
            self.ahead = None
        elif does < 0.87:
            self.ask("post", "/here", {"desk": lease_id})
        elif does < 0.94:  # the time of all their cards is over, and others notice
            own = Lease.labeler_id == self.labeler.id, Lease.state == "live"
            self.session.execute(update(Lease).where(*own).values(expires_at=text("now() - interval '1 minute'")))
            self.session.commit()
            self.others_client.get(f"/projects/{self.elsewhere.slug}/label", headers=SCRIPT)
        else:
            self.reload()
        if self.luck.random() < 0.2:
            self.look()
        return None


@pytest.mark.parametrize("seed", [3, 7])
def test_calibration_items_are_not_to_be_told_by_what_the_script_does(
    session: Session, sign_in: SignIn, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """In one world the third task is a calibration item, in the other none is."""

    def live(place: int | None) -> Scripted:
        world = Scripted(session, sign_in, seed)
        item: Comparison | None = None
        for n in range(TASKS if place is None else TASKS + 1):
            if n == place:
                item = world.task(f"t{n}", purpose="calibration", gold=-2, overlap=9)
            else:
                world.task(f"t{n}", overlap=9)

        def drawn() -> float:
            """Return 0, which makes the next task an item, for the third task that the labeler gets."""
            given = select(Lease.comparison_id).join(Comparison, Comparison.id == Lease.comparison_id)
            given = given.where(Lease.labeler_id == world.labeler.id, Comparison.project_id == world.project.id)
            with Session(session.get_bind()) as own:
                ids = set(own.scalars(given))
            return 0.0 if item is not None and item.id not in ids and len(ids) == place else 0.99

        monkeypatch.setattr(mixing._chance, "random", drawn)
        for _ in range(STEPS):
            world.step()
            session.expire_all()
        if item is not None:
            assert session.scalar(select(func.count()).where(Lease.comparison_id == item.id))
        world.end()
        return world

    assert_alike([live(place) for place in (None, 2)])
