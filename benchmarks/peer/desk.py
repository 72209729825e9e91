"""A labeler of Prefloop, who asks as the page's script does (static/js/label.js).

An answer, `POST label/LEASE`, names the card that is shown by then, and brings the one after it. So one request does
what an answer and a card cost elsewhere; only the first card of a visit is asked for, by `GET label/ahead`. At every
tenth answer the script has the service count what is done and left.
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
    """What an answer to the card needs. steps: of the scale."""

    lease: str
    fields: dict[str, str]
    steps: list[str]


def read_card(html: str) -> Card | None:
    """The card on a desk, or ahead of it; none if the desk is empty."""
    lease = LEASE.search(html)
    if lease is None:
        return None
    found = {name: re.search(FIELD.format(name), html) for name in ("idempotency_key", "rubric_id")}
    fields = {name: match[1] for name, match in found.items() if match}
    return Card(lease[1], fields, STEP.findall(html))


class OurLabeler:
    """A labeler of Prefloop. `desk` is the card in front of them, `ahead` the one loaded behind it."""

    def __init__(self, http: httpx.Client, email: str, password: str) -> None:
        """Sign in by the form, and open the labeling page."""
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
        """Ask for the desk anew, as the script does when it has no card."""
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
        # After a failure nothing is known of the desk: it is asked for anew.
        self.desk, following, self.ahead = None, self.ahead, None
        body = self._json("POST", f"{DESK}/{card.lease}", data=fields)
        self.desk = following if body["desk"] is None else read_card(body["desk"])
        if self.desk and body.get("beside") == self.desk.lease and body["card"]:
            self.ahead = read_card(body["card"])
        return card.lease

    def _json(self, method: str, url: str, **kwargs: Any) -> Any:
        return checked(self.http.request(method, url, headers=self.headers, **kwargs)).json()
