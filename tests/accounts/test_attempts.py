"""Guessing passwords: each attempt counts before its password is checked, waits grow, and nobody is locked out."""

import asyncio
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.accounts import attempts, service
from app.accounts.attempts import BROWSER_COOKIE
from app.accounts.hashing import HASHED_AT_ONCE
from app.models import SigninFailure, User
from tests.conftest import SignedIn

SignIn = Callable[..., SignedIn]
PASSWORD = "correct horse battery"
RIGHT = {"email": "ada@example.org", "password": PASSWORD}
HOME, AWAY = "testclient", "198.51.100.7"


@pytest.fixture
def ada(session: Session) -> User:
    user = service.create_user(session, email="ada@example.org", name="Ada", password=PASSWORD)
    session.commit()
    return user


def fail(session: Session, n: int, *, ago: float = 0, email: str = "ada@example.org", place: str = HOME) -> None:
    """Record wrong passwords from some seconds ago."""
    at = datetime.now(UTC) - timedelta(seconds=ago)
    session.add_all(SigninFailure(email=email, address=place, at=at) for _ in range(n))
    session.commit()


def wait_of(session: Session, email: str = "ada@example.org", place: str = HOME) -> int:
    """Return the seconds that the next attempt would have to wait, without counting an attempt."""
    try:
        with session.begin_nested() as nested:
            attempts.count(session, email, place)
            nested.rollback()
    except attempts.MustWait as wait:
        return wait.seconds
    return 0


def test_after_ten_wrong_passwords_the_next_has_to_wait(sign_in: SignIn, session: Session, ada: User) -> None:
    client = sign_in()
    wrong = {"email": "Ada@example.org", "password": "not the password"}
    fail(session, 9)
    assert client.post("/sign-in", wrong).status_code == 422
    fail(session, 7)
    waits = client.post("/sign-in", RIGHT)
    assert waits.status_code == 429
    assert 120 <= int(waits.headers["Retry-After"]) <= 300
    assert f"Wait {-(-int(waits.headers['Retry-After']) // 60)} minutes" in waits.text
    session.execute(SigninFailure.__table__.update().values(at=SigninFailure.at - timedelta(seconds=301)))
    session.commit()
    assert client.post("/sign-in", RIGHT).status_code == 303
    assert session.scalars(select(SigninFailure)).all() == []


def test_many_guesses_at_once_look_at_no_more_passwords_than_guesses_one_after_another(
    sign_in: SignIn, session: Session, ada: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at: list[str] = []
    together = threading.Barrier(24)

    class Counted:
        def verify(self, password: str, _hash: str) -> bool:
            looked_at.append(password)
            return False

    monkeypatch.setattr(service, "_passwords", Counted())
    monkeypatch.setattr(attempts, "FIRST_WAIT", 300)  # longer than any machine needs for this
    clients = [sign_in() for _ in range(24)]
    tokens = [client._csrf_token() for client in clients]

    def guess(n: int) -> int:
        together.wait(timeout=60)
        form = {"email": "ada@example.org", "password": f"guess {n}", "csrf_token": tokens[n]}
        return clients[n].post("/sign-in", form, csrf=False).status_code

    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(guess, range(24)))
    assert len(looked_at) <= 10
    assert sorted(set(answers)) == [422, 429]


def test_few_passwords_are_looked_at_at_once(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eighty visitors at once took 2 GB and all threads for 24 s."""
    now, most = 0, 0
    guard = threading.Lock()

    class Slow:
        def verify(self, _password: str, _hash: str) -> bool:
            nonlocal now, most
            with guard:
                now += 1
                most = max(most, now)
            time.sleep(0.05)
            with guard:
                now -= 1
            return False

    monkeypatch.setattr(service, "_passwords", Slow())

    async def guess(n: int) -> int:
        # Each visitor has a separate browser, in one event loop with the others.
        transport = httpx.ASGITransport(app, client=(f"198.51.100.{n}", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://testserver") as client:
            page = (await client.get("/sign-in")).text
            form = {
                "email": f"{n}@example.org",
                "password": "guess",
                "csrf_token": re.findall(r'name="csrf_token" value="(\w+)"', page)[0],
            }
            return (await client.post("/sign-in", data=form)).status_code

    async def all_at_once() -> list[int]:
        return await asyncio.gather(*(guess(n) for n in range(8)))

    assert asyncio.run(all_at_once()) == [422] * 8
    assert 1 <= most <= HASHED_AT_ONCE


def test_waits_double_up_to_a_longest_one_and_end(session: Session, ada: User) -> None:
    waits = [attempts._wait(n, attempts.OF_BOTH) for n in range(20)]
    assert waits == [0] * 10 + [5, 10, 20, 40, 80, 160, 300, 300, 300, 300]
    fail(session, 50, ago=200)
    assert wait_of(session) > 0
    session.execute(SigninFailure.__table__.update().values(at=SigninFailure.at - timedelta(seconds=101)))
    assert wait_of(session) == 0


def test_a_refused_attempt_does_not_prolong_the_wait(sign_in: SignIn, session: Session, ada: User) -> None:
    fail(session, 12)
    assert sign_in().post("/sign-in", RIGHT).status_code == 429
    assert session.scalar(select(func.count()).select_from(SigninFailure)) == 12


def test_guesses_that_are_spread_wait_too_and_never_long(session: Session, ada: User) -> None:
    for n in range(130):
        fail(session, 1, place=f"198.51.100.{n}")  # one account, from everywhere
        fail(session, 1, email=f"{n}@example.org", place="192.0.2.9")  # all accounts, from one address
    assert 0 < wait_of(session) <= 30
    assert 0 < wait_of(session, "bo@example.org", "192.0.2.9") <= 30
    assert wait_of(session, "bo@example.org", AWAY) == 0


def test_others_guesses_never_make_the_owner_wait_in_a_browser_that_signed_in_before(
    sign_in: SignIn, session: Session, ada: User
) -> None:
    client, stranger = sign_in(), sign_in()
    assert client.post("/sign-in", RIGHT).status_code == 303
    client.post("/sign-out")
    fail(session, 500)
    fail(session, 500, email="bo@example.org")
    assert stranger.post("/sign-in", RIGHT).status_code == 429
    assert client.post("/sign-in", RIGHT).status_code == 303
    # Only this account knows the browser, by a cookie that nobody can forge, and it counts its own failures.
    assert client.post("/sign-in", RIGHT | {"email": "bo@example.org"}).status_code == 429
    known = client.http.cookies[BROWSER_COOKIE]
    stranger.http.cookies.set(BROWSER_COOKIE, known.replace(".", "x.", 1))
    assert stranger.post("/sign-in", RIGHT).status_code == 429
    fail(session, 11, place=attempts.BROWSER + known.partition(".")[0])
    assert client.post("/sign-in", RIGHT).status_code == 429


def test_a_password_link_helps_who_has_to_wait(session: Session, ada: User) -> None:
    fail(session, 12)
    fail(session, 200, place=AWAY)
    token = service.create_link(session, created_by=None, days=1, user_id=ada.id)
    service.redeem_link(session, token, email="", name="", password="another long phrase")
    assert wait_of(session) == 0


def test_failures_count_for_an_hour(session: Session, ada: User) -> None:
    fail(session, 50, ago=3601)
    assert wait_of(session) == 0
    attempts.forget(session, "bo@example.org", AWAY)
    assert session.scalars(select(SigninFailure)).all() == []


@pytest.mark.parametrize(
    ("address", "place"),
    [("192.0.2.1", "192.0.2.1"), ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"), ("testclient", "testclient"), ("", "")],
)
def test_a_place_is_an_address_or_the_network_of_one_customer(address: str, place: str) -> None:
    assert attempts.place_of(address, None) == place
