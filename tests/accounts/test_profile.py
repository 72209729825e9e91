"""A user's own profile: name, password, and signed-in browsers."""

from collections.abc import Callable

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.accounts import attempts, service
from app.models import AuthSession
from tests import factories
from tests.conftest import SignedIn

SignIn = Callable[..., SignedIn]


def test_name_password_and_browsers(sign_in: SignIn, session: Session) -> None:
    user = service.create_user(session, email="ada@example.org", name="Ada", password="an old password")
    factories.user(session)
    here, elsewhere = sign_in(user=user), sign_in(user=user)
    assert here.post("/profile", {"name": " Ada  Lovelace "}).headers["location"] == "/profile?saved=name"
    assert 'value="Ada Lovelace"' in here.get("/profile?saved=name").text
    refused = here.post("/profile", {"name": "  "})
    assert (refused.status_code, "The name is empty" in refused.text) == (422, True)

    wrong = here.post("/profile/password", {"current": "a guess of it", "new": "a newer password"})
    assert (wrong.status_code, "current password is wrong" in wrong.text) == (422, True)
    short = here.post("/profile/password", {"current": "an old password", "new": "short"})
    assert "fewer than 10 characters" in short.text
    assert elsewhere.get("/profile").status_code == 200
    done = here.post("/profile/password", {"current": "an old password", "new": "a newer password"})
    assert done.headers["location"] == "/profile?saved=password"
    assert here.get("/profile").status_code == 200
    assert elsewhere.get("/profile").status_code == 303  # redirected to the sign-in
    session.expire_all()
    assert service.authenticate(session, "ada@example.org", "a newer password") is not None

    here, again = sign_in(user=user), sign_in(user=user)
    assert "Sign out other browsers" in here.get("/profile").text
    here.post("/profile/sessions/end")
    assert (here.get("/profile").status_code, again.get("/profile").status_code) == (200, 303)
    assert session.scalar(select(func.count()).where(AuthSession.user_id == user.id)) == 1


def test_guesses_of_the_current_password_have_to_wait(
    sign_in: SignIn, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "OF_BOTH", attempts.Limit(free=1, longest=300))
    user = service.create_user(session, email="ada@example.org", name="Ada", password="an old password")
    here = sign_in(user=user)
    answers = [here.post("/profile/password", {"current": f"guess {n}", "new": "x" * 12}) for n in range(2)]
    assert [answer.status_code for answer in answers] == [422, 429]
