"""What the command says about settings it cannot use."""

import pytest

from app import cli


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
