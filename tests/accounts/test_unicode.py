"""A person who types an address or a password in another Unicode form, or another case, is the same person."""

from collections.abc import Callable

import pytest
from sqlalchemy.orm import Session

from app.accounts import service
from app.errors import Conflict, InvalidInput
from tests.conftest import SignedIn

COMPOSED, APART = "J\u00f6rg@example.org", "jo\u0308rg@Example.org "
PASSWORD, PASSWORD_APART = "ein sch\u00f6nes Wort", "ein scho\u0308nes Wort"


@pytest.mark.parametrize("stored", [(COMPOSED, PASSWORD), (APART, PASSWORD_APART)])
def test_signing_in_takes_either_form(
    sign_in: Callable[..., SignedIn], session: Session, stored: tuple[str, str]
) -> None:
    email, password = stored
    user = service.create_user(session, email=email, name="J\u00f6rg", password=password)
    assert user.email == "j\u00f6rg@example.org"
    with pytest.raises(Conflict, match="already has an account"):
        service.create_user(session, email=APART, name="Another", password=PASSWORD)
    session.commit()
    for typed in (COMPOSED, APART):
        for secret in (PASSWORD, PASSWORD_APART):
            answer = sign_in().post("/sign-in", {"email": typed, "password": secret})
            assert (answer.status_code, answer.headers.get("location")) == (303, "/")
    assert sign_in().post("/sign-in", {"email": COMPOSED, "password": "ein schones Wort"}).status_code == 422
    service.set_password(session, user, PASSWORD_APART + "!")
    session.commit()
    assert sign_in().post("/sign-in", {"email": COMPOSED, "password": PASSWORD + "!"}).status_code == 303


def test_browsers_let_such_an_address_through(sign_in: Callable[..., SignedIn], session: Session) -> None:
    """Inputs of the type email refuse letters beyond ASCII before the at sign."""
    token = service.create_link(session, created_by=None, days=1)
    session.commit()
    for address in ("/sign-in", f"/join/{token}"):
        field = sign_in().get(address).text.partition('id="email"')[2].partition(">")[0]
        assert field
        assert 'type="email"' not in field


@pytest.mark.parametrize("typed", ["ann@example.org\u200b", "a\u00adnn@example.org", "\u202aann@example.org\u2066"])
def test_an_address_with_what_cannot_be_seen_is_the_one_without(session: Session, typed: str) -> None:
    """Otherwise an admin who reads the list of members could give a role to a person with a look-alike address."""
    service.create_user(session, email="ann@example.org", name="Ann", password=PASSWORD)
    with pytest.raises(Conflict, match="already has an account"):
        service.create_user(session, email=typed, name="Ann", password=PASSWORD)


@pytest.mark.parametrize(
    "typed", ["a nn@example.org", "ann@example.org\nb", "ann\x07@example.org", "ann\u061c@example.org"]
)
def test_what_no_address_holds_is_refused(session: Session, typed: str) -> None:
    with pytest.raises(InvalidInput, match="not an e-mail address"):
        service.create_user(session, email=typed, name="Ann", password=PASSWORD)
