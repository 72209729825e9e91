"""Values that never appear in a log, whoever writes it."""

import logging
import traceback

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import Session

from app.accounts import service
from app.logs import Discreet, start_logging
from app.models import User
from tests import factories

HASH = "$argon2id$v=19$m=65536,t=3,p=4$c2FsdA$aGFzaA"


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ('127.0.0.1:1 - "GET /join/Ab_-9?x=1 HTTP/1.1" 200', '127.0.0.1:1 - "GET /join/…?x=1 HTTP/1.1" 200'),
        (f"row (1, {HASH}) x", "row (1, $argon2id$…) x"),
        ("Authorization: Bearer sk-1234", "Authorization: Bearer …"),
        ("GET /sign-in?next=/join/Ab_-9", "GET /sign-in?next=/join/…"),
        ("GET /sign-in?next=%2Fjoin%2FAb_-9", "GET /sign-in?next=%2Fjoin%2F…"),
        ("GET /projects/p/join", "GET /projects/p/join"),
    ],
)
def test_secrets_are_cut_short_wherever_they_stand(said: str, kept: str) -> None:
    record = logging.LogRecord("x", logging.INFO, "", 0, "%s", (said,), None)
    assert Discreet("%(message)s").format(record) == kept


def failed(session: Session, email: str) -> DBAPIError:
    session.add(User(email=email, name="Ada", password_hash=HASH, kind="king"))
    with pytest.raises(IntegrityError) as raised:
        session.flush()
    return raised.value


def test_an_error_of_the_database_quotes_no_values(session: Session) -> None:
    """The error contains neither the statement's parameters nor the row that PostgreSQL quotes."""
    error = failed(session, "ada@example.org")
    told = "".join(traceback.format_exception(error))
    assert "kind_known" in told  # it says what was wrong
    for value in ("ada@example.org", "argon2", "c2FsdA", "king"):
        assert value not in told


def test_the_embedded_databases_own_log_quotes_no_rows(engine: Engine) -> None:
    with engine.connect() as connection:
        assert connection.scalar(text("SHOW log_error_verbosity")) == "terse"
        assert connection.scalar(text("SHOW log_parameter_max_length_on_error")) == "0"


def test_this_programs_log_is_discreet(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    root.handlers = []
    try:
        start_logging(logging.INFO)
        token = service.create_link(session, created_by=None, days=1, is_admin=True)
        user = factories.user(session, password_hash=HASH)
        try:
            raise ValueError(f"no {user.password_hash} at /join/{token}")
        except ValueError:
            logging.getLogger("anything").exception("GET /join/%s failed", token)
    finally:
        root.handlers, root.level = before, level
    told = capsys.readouterr().err
    assert "anything" in told
    assert token not in told
    assert "c2FsdA" not in told
