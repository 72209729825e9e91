"""A simulated labeler of Prefloop, who sends the same requests as the page's script (static/js/label.js).

An answer, `POST label/LEASE`, names the card that is shown next, and its response contains the card after that. So one
request replaces two requests of other tools, one for the answer and one for the card. Only the first card of a visit
needs its own request, `GET label/ahead`. With every tenth answer, the script asks the service for the numbers of done
and remaining tasks.
"""

import random
import re
from typing import Any, NamedTuple

import httpx

from benchmarks.peer.client import checked

PROJECT = "peer"
DESK = f"/projects/{PROJECT}/label"
LEASE = re.compile(r'data-lease="([^"]+)"')
FIELD = r'name="{}" value="([^"]*)"'
STEP = re.compile(r'type="radio" name="preference" value="(-?\d+)"')
CSRF = re.compile(r'"X-CSRF-Token": "(\w+)"')
READ_MS = 1000
COUNTED_EVERY = 10


class Card(NamedTuple):
    """The data that an answer to the card needs. `steps` are the steps of the scale."""

    lease: str
    fields: dict[str, str]
    steps: list[str]


def read_card(html: str) -> Card | None:
    """Return the card in a page, either shown or loaded ahead; None if there is no card."""
    lease = LEASE.search(html)
    if lease is None:
        return None
    found = {name: re.search(FIELD.format(name), html) for name in ("idempotency_key", "rubric_id")}
    fields = {name: match[1] for name, match in found.items() if match}
    return Card(lease[1], fields, STEP.findall(html))


class OurLabeler:
    """A labeler of Prefloop. `desk` is the shown card, and `ahead` is the next card, which is already loaded."""

    def __init__(self, http: httpx.Client, email: str, password: str) -> None:
        """Sign in with the form, and open the labeling page."""
        self.http, self.draw = http, random.Random(email)
        token = self._token(checked(http.get("/sign-in")))
        page = checked(
            http.post("/sign-in", data={"csrf_token": token, "email": email, "password": password, "next": DESK})
        )
        self.headers = {"Accept": "application/json", "X-CSRF-Token": self._token(page)}
        self.desk = read_card(page.text)
        self.ahead: Card | None = None
        self.uncounted = 0
        self.asked = True

    @staticmethod
    def _token(page: httpx.Response) -> str:
        found = CSRF.search(page.text)
        assert found, f"{page.url} has no CSRF token"
        return found[1]

    def open_desk(self) -> Card | None:
        """Request the desk again, as the script does when it has no card."""
        self.ahead = None
        self.desk = read_card(self._json("GET", DESK)["desk"])
        return self.desk

    def next_card(self) -> Card | None:
        if self.desk is None and self.open_desk() is None:
            return None
        assert self.desk
        self.asked = self.ahead is None
        if self.ahead is None:
            following = self._json("GET", f"{DESK}/ahead", params={"beside": self.desk.lease})["card"]
            self.ahead = read_card(following) if following else None
        return self.desk

    def answer(self, card: Card) -> str:
        fields = card.fields | {
            "preference": self.draw.choice(card.steps),
            "rationale": "",
            "duration_ms": str(READ_MS),
            "desk": self.ahead.lease if self.ahead else "",
        }
        self.uncounted = (self.uncounted + 1) % COUNTED_EVERY
        if not self.uncounted:
            fields["count"] = "1"
        # After a failure the state of the desk is unknown, so clear it first: the next card is then requested again.
        self.desk, following, self.ahead = None, self.ahead, None
        body = self._json("POST", f"{DESK}/{card.lease}", data=fields)
        self.desk = following if body["desk"] is None else read_card(body["desk"])
        if self.desk and body.get("beside") == self.desk.lease and body["card"]:
            self.ahead = read_card(body["card"])
        return card.lease

    def _json(self, method: str, url: str, **kwargs: Any) -> Any:
        return checked(self.http.request(method, url, headers=self.headers, **kwargs)).json()
