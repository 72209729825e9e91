"""docker-compose.yml, the Dockerfile and the documents agree with the code. (They are not built here.)"""

import json
import re
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
import typer
import yaml

from app.cli import app
from app.rows import DemonstrationRow, PairRow, PromptRow, ThumbRow
from app.settings import Settings, markdown_table
from app.specs import RUN_SPEC

ROOT = Path(__file__).resolve().parent.parent.parent
VARIABLES = {"DATABASE_URL"} | {f"PREFLOOP_{name.upper()}" for name in Settings.model_fields}
COMMANDS = set(typer.main.get_command(app).commands)


@pytest.fixture(scope="module")
def compose() -> dict:
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text())


def test_compose_sets_only_settings_that_exist(compose: dict) -> None:
    for name in ("migrate", "web", "worker"):
        assert set(compose["services"][name]["environment"]) <= VARIABLES


def test_compose_hands_on_every_setting_of_the_env_file(compose: dict) -> None:
    """Except settings that say where things are inside the container."""
    for name in ("migrate", "web", "worker"):
        service = compose["services"][name]
        assert service["env_file"] == [{"path": ".env", "required": False}]
        fixed = {key for key, value in service["environment"].items() if "${" not in str(value)}
        assert fixed == {"PREFLOOP_HOME", "PREFLOOP_HOST", "PREFLOOP_PORT"}
    port = compose["services"]["web"]["environment"]["PREFLOOP_PORT"]
    assert compose["services"]["web"]["ports"] == [f"${{PREFLOOP_PUBLISH:-0.0.0.0}}:${{PREFLOOP_PORT:-8000}}:{port}"]


def test_compose_trusts_no_proxy_unless_told_and_says_which_to_name(compose: dict) -> None:
    for name in ("migrate", "web", "worker"):
        assert compose["services"][name]["environment"]["PREFLOOP_TRUSTED_PROXIES"] == "${PREFLOOP_TRUSTED_PROXIES:-}"
    [network] = compose["networks"]["default"]["ipam"]["config"]
    assert ip_address(network["gateway"]) in ip_network(network["subnet"])
    for document in ("docker-compose.yml", "README.md"):
        assert f"PREFLOOP_TRUSTED_PROXIES={network['gateway']}" in (ROOT / document).read_text()


def test_compose_runs_commands_that_exist(compose: dict) -> None:
    commands = {name: service["command"] for name, service in compose["services"].items() if "command" in service}
    assert commands.pop("postgres") == ["postgres", "-c", "log_error_verbosity=terse"]
    assert set(commands) == {"migrate", "web", "worker"}
    for command in commands.values():
        assert command[0] == "prefloop"
        assert command[1] in COMMANDS


def test_compose_migrates_before_it_serves(compose: dict) -> None:
    services = compose["services"]
    assert services["migrate"]["depends_on"]["postgres"]["condition"] == "service_healthy"
    for name in ("web", "worker"):
        assert services[name]["depends_on"]["migrate"]["condition"] == "service_completed_successfully"


def test_the_compose_database_url_is_one_the_settings_take(compose: dict) -> None:
    url = compose["services"]["web"]["environment"]["DATABASE_URL"]
    assert re.fullmatch(r"postgresql://prefloop:\$\{POSTGRES_PASSWORD:\?[^}]+\}@postgres/prefloop", url)


def test_the_image_runs_as_a_plain_user_and_copies_what_exists() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    last_stage = lines[max(i for i, line in enumerate(lines) if line.startswith("FROM")) :]
    users = [line.split()[1] for line in last_stage if line.startswith("USER")]
    assert users == ["prefloop"]
    for line in lines:
        if line.startswith("COPY") and "--from" not in line:
            for source in line.split()[1:-1]:
                assert (ROOT / source).exists(), source
                assert f"!{source}" in (ROOT / ".dockerignore").read_text().splitlines()
    environment = {name for line in last_stage for name in re.findall(r"\b(PREFLOOP_\w+)=", line)}
    assert environment <= VARIABLES


def test_the_readme_shows_the_settings_as_they_are() -> None:
    readme = (ROOT / "README.md").read_text()
    shown = re.search(r"<!-- settings -->\n(.*?)\n<!-- /settings -->", readme, re.S)
    assert shown, "README.md has no settings table"
    assert shown[1] == markdown_table(), "README.md is stale: run `make docs`"


def test_the_readme_names_every_command() -> None:
    readme = (ROOT / "README.md").read_text()
    for command in COMMANDS:
        assert f"prefloop {command}" in readme, command


def test_the_trainers_manual_shows_what_the_trainer_reads() -> None:
    manual = (ROOT / "docs" / "training.md").read_text()
    spec = re.search(r'^    (\{"kind": .*?\})\n\n', manual, re.M | re.S)
    assert spec
    assert RUN_SPEC.validate_json(spec[1]).kind == "dpo"
    rows = {"prompts": PromptRow, "snapshot": PairRow, "demonstrations": DemonstrationRow, "thumbs": ThumbRow}
    shown = dict(re.findall(r"^- `(\w+)`[^`]*(?:`ptx`[^`]*)?`(\{.*?\})`", manual, re.M | re.S))
    assert shown.keys() == rows.keys()
    for name, model in rows.items():
        # “At least these fields”: all fields in the manual are required.
        needed = {field for field, info in model.model_fields.items() if info.is_required()}
        assert set(json.loads(shown[name])) - {"split"} == needed - {"split"}, name
        model.model_validate_json(shown[name].replace("\n", " "))


def test_make_lists_its_targets() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = set(re.search(r"^\.PHONY: (.*)$", makefile, re.M)[1].split())
    documented = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.M))
    assert phony == documented
