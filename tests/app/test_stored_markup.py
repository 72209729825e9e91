"""Texts of people and files are shown and never run: every page of a project in which every text is hostile."""

import json
from collections.abc import Callable

import pytest
from bs4 import BeautifulSoup, Tag
from sqlalchemy.orm import Session

from app.settings import Settings
from tests.app.test_every_route import ROUTES, WHO, P
from tests.app.world import HOSTILE, World, build
from tests.conftest import SignedIn

SignIn = Callable[..., SignedIn]
# Files, figures for scripts, and a part of a page that is checked as a whole.
NO_PAGES = {
    f"{P}/{path}"
    for path in (
        *("data/export", "samples.jsonl", "rounds/{number}/samples.jsonl", "agreement/section"),
        *("leaderboard/figures.csv", "progress/compare.csv", "progress/files/{name}"),
        *("suites/{suite_id}/cases.jsonl", "suites/{suite_id}/answers.jsonl", "judges/{judge_id}/judgments.jsonl"),
        "constitution/{constitution_id}/revisions.jsonl",
        *("models/{model_id}/files/{name}", "rounds/{number}/files/{name}", "monitors/figures.csv"),
        *("rounds/{number}/status", "rounds/{number}/metrics"),
    )
}
QUERIES = {f"{P}/rubric/diff": "?was=1"}
RUNS = ("javascript:", "data:text", "vbscript:")


@pytest.fixture
def world(session: Session, settings: Settings) -> World:
    return build(session, settings.artifacts_root)


def dangers(html: str) -> list[str]:
    """Return elements that exist only if a hostile text became markup."""
    return [str(element)[:200] for element in BeautifulSoup(html, "html.parser").find_all(True) if _is_danger(element)]


def _is_danger(element: Tag) -> bool:
    attributes = {name.lower(): str(value).strip().lower() for name, value in element.attrs.items()}
    return (
        (element.name == "script" and "boom" in element.text)
        or (element.name in ("svg", "iframe", "object", "embed", "base") and "boom" in str(element))
        or (element.name == "img" and not attributes.get("src", "").startswith("/static/"))
        or any(name.startswith("on") or value.startswith(RUNS) for name, value in attributes.items())
        or any("//evil.example" in value for name, value in attributes.items() if name.startswith("hx-"))
    )


def test_dangers_are_seen() -> None:
    assert len(dangers(HOSTILE)) >= 5
    assert dangers("<p>" + HOSTILE.replace("<", "&lt;") + "</p>") == []


def test_no_page_runs_what_it_shows(sign_in: SignIn, world: World) -> None:
    labeler, staff = sign_in(user=world.labeler), sign_in("admin", "operator", "administrator")
    silent = set()
    for route in ROUTES:
        if route.method != "GET" or route.path.startswith(("/join", "/sign-in")) or route.path in NO_PAGES:
            continue
        client = labeler if WHO[route.name] == "l" or route.path == "/label" else staff
        answer = client.get(route.address(world.values) + QUERIES.get(route.path, ""))
        assert answer.status_code in (200, 303), (route, answer.status_code)
        if answer.status_code == 200:
            html = answer.text if "html" in answer.headers["content-type"] else str(answer.json()["card"])
            assert dangers(html) == [], route
            if "boom()" not in html:
                silent.add(route.path)
    # Figures alone, and one's own name.
    assert silent == {f"{P}/agreement/live", f"{P}/agreement/attention", f"{P}/labelers/attention", "/profile"}


@pytest.mark.parametrize(
    ("address", "field"), [("demonstrations/preview", "text"), ("rubric/preview", "guideline"), ("rubric", "guideline")]
)
def test_no_preview_runs_what_it_shows(sign_in: SignIn, world: World, address: str, field: str) -> None:
    shown = sign_in("admin").post(f"/projects/{world.project.slug}/{address}", {field: HOSTILE}).text
    assert "boom()" in shown
    assert dangers(shown) == []


def test_no_import_runs_what_it_brings(sign_in: SignIn, world: World) -> None:
    admin, base = sign_in("admin"), f"/projects/{world.project.slug}"
    good = {"prompt": f"{HOSTILE} new", "chosen": HOSTILE, "rejected": f"{HOSTILE} b", "domain": HOSTILE, "id": HOSTILE}
    for name, row in (
        (f"{HOSTILE}.jsonl", good),
        ("bad.jsonl", good | {"chosen": {HOSTILE: 1}}),
        ("b.jsonl", {HOSTILE: 1}),
    ):
        for address in ("data/preview", "data"):
            answer = admin.post(f"{base}/{address}", files={"files": (name, json.dumps(row).encode())})
            assert answer.status_code in (200, 422)
            assert dangers(answer.text) == []
    assert dangers(admin.get(f"{base}/prompts").text) == []
