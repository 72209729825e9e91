"""What the command says about settings it cannot use, and about a database that nobody has prepared."""

import pytest
from sqlalchemy import text

from app import cli
from app.db import make_engine
from app.errors import Unavailable
from app.postgres import require_schema


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("PREFLOOP_PORT", "99999", "PREFLOOP_PORT is '99999'"),
        ("DATABASE_URL", "mysql://someone:secret@host/name", "DATABASE_URL is not the address of a PostgreSQL"),
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

    monkeypatch.setattr("sys.argv", ["prefloop", "user", "link", "--role", "admin"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert "/join/" in capsys.readouterr().out
    require_schema(empty_database)

    engine = make_engine(empty_database)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = 'another'"))
    engine.dispose()
    with pytest.raises(Unavailable, match="another version"):
        require_schema(empty_database)
