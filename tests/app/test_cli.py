"""The commands' texts about invalid settings, and about a database that nobody has prepared."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from sqlalchemy import select
from sqlalchemy.orm import Session
from typer.testing import CliRunner, Result
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from app import cli
from app.access import members
from app.accounts import service as accounts
from app.errors import InvalidInput, NotFound, PrefloopError
from app.models import Project, ProjectMember
from app.schema import require_schema
from tests import factories

PASSWORD = "correct horse battery"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("PREFLOOP_PORT", "99999", "PREFLOOP_PORT is '99999'"),
        ("DATABASE_URL", "mysql://someone:secret@host/name", "DATABASE_URL is not the address of a PostgreSQL"),
        ("PREFLOOP_TRUSTED_PROXIES", "*", "PREFLOOP_TRUSTED_PROXIES is '*'"),
        ("PREFLOOP_TRUSTED_PROXIES", "10.0.0.1/8", "PREFLOOP_TRUSTED_PROXIES is '10.0.0.1/8'"),
        ("PREFLOOP_MODEL_FOLDERS", "/models:data", "PREFLOOP_MODEL_FOLDERS is '/models:data'"),
        ("DATABASE_URL", "nonsense", "DATABASE_URL is not the address of a PostgreSQL"),
    ],
)
def test_a_wrong_setting_is_named_and_the_command_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, value: str, said: str
) -> None:
    monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.argv", ["prefloop", "user", "list"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    told = capsys.readouterr().err
    assert said in told
    assert "secret" not in told
    assert "Traceback" not in told


def test_what_serves_asks_for_the_schema_and_other_commands_make_it(
    empty_database: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["prefloop", "web"])
    with pytest.raises(SystemExit):
        cli.main()
    assert "Run `prefloop migrate` first." in capsys.readouterr().err

    monkeypatch.setattr("sys.argv", ["prefloop", "invite", "--administrator"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert "/join/" in capsys.readouterr().out
    require_schema(empty_database)


@pytest.fixture
def run(session: Session, database_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Result]:
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("PREFLOOP_HOME", str(tmp_path))
    return lambda *arguments: CliRunner().invoke(cli.app, arguments, env={"PREFLOOP_NEW_PASSWORD": PASSWORD})


def test_people_from_the_command_line(session: Session, run: Callable[..., Result]) -> None:
    alone, other = factories.project(session, slug="alone"), factories.project(session, slug="other")
    factories.member(session, other, "admin", email="op@example.org", name="Op")
    session.commit()
    for wrong in (["invite"], ["invite", "--project", "none", "--role", "labeler"], ["invite", "--project", "other"]):
        assert isinstance(run(*wrong).exception, PrefloopError)
    assert isinstance(run("user", "add", "x@example.org", "--name", "X", "--role", "admin").exception, InvalidInput)

    invited = run("invite", "--project", "other", "--role", "operator", "--role", "labeler").output.strip()
    joined = accounts.redeem_link(
        session, invited.rpartition("/")[2], email="bo@example.org", name="Bo", password=PASSWORD
    )
    assert members.roles_in(session, other.id, joined) == {"labeler", "operator"}
    assert not joined.is_admin
    session.commit()

    run("user", "add", "ada@example.org", "--name", "Ada", "--administrator", "--project", "other", "--role", "labeler")
    run("user", "add", "cy@example.org", "--name", "Cy", "--administrator")
    # The first administrator becomes a member of projects without members.
    assert run("user", "list").output.splitlines() == [
        "op@example.org  Op  other: admin",
        "bo@example.org  Bo  other: labeler, operator",
        "ada@example.org  Ada  administrator; alone: labeler, admin, operator; other: labeler",
        "cy@example.org  Cy  administrator",
    ]
    assert "/join/" in run("user", "link", "Ada@example.org").output
    assert isinstance(run("user", "link", "nobody@example.org").exception, NotFound)
    assert session.get(ProjectMember, (alone.id, joined.id)) is None


def test_a_project_that_the_command_line_makes_has_the_administrators(
    session: Session, run: Callable[..., Result], tmp_path: Path
) -> None:
    ada = factories.account(session, is_admin=True)
    off = factories.account(session, is_admin=True, is_active=False)
    session.commit()
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Why?"}\n')
    done = run("import", str(tmp_path / "prompts.jsonl"), "--project", "new", "--yes")
    assert done.exit_code == 0, done.output
    project = session.scalars(select(Project)).one()
    assert members.roles_in(session, project.id, ada) == {"labeler", "admin", "operator"}
    assert members.roles_in(session, project.id, off) == frozenset()


def test_only_trusted_proxies_say_where_a_visitor_is(
    database_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    served: dict[str, Any] = {}
    monkeypatch.setattr(uvicorn, "run", lambda app, **options: served.update(options, app=app))
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("PREFLOOP_HOME", str(tmp_path))
    monkeypatch.setenv("PREFLOOP_TRUSTED_PROXIES", "172.31.250.1, 10.1.0.0/16")
    monkeypatch.setattr("sys.argv", ["prefloop", "web"])
    with pytest.raises(SystemExit):
        cli.main()
    config = uvicorn.Config(**served)
    config.load()
    assert isinstance(config.loaded_app, ProxyHeadersMiddleware)
    seen = []

    async def app(scope: Any, _receive: Any, _send: Any) -> None:
        seen.append((scope["client"][0], scope["scheme"]))

    config.loaded_app.app = app
    for peer in ("172.31.250.1", "10.1.2.3", "10.2.2.3", "127.0.0.1"):
        headers = [(b"x-forwarded-for", b"192.0.2.66, 192.0.2.1"), (b"x-forwarded-proto", b"https")]
        asyncio.run(
            config.loaded_app({"type": "http", "client": (peer, 1), "scheme": "http", "headers": headers}, None, None)
        )
    proxied, direct = ("192.0.2.1", "https"), "http"  # the proxy adds the last address; the visitor sent the others
    assert seen == [proxied, proxied, ("10.2.2.3", direct), ("127.0.0.1", direct)]
