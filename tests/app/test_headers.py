"""Headers of responses that do not come from a route: faults, files, and the rule for HTTPS."""

from collections.abc import Callable

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from app.access.sessions import VISITOR_COOKIE
from app.headers import SECURITY_HEADERS
from app.main import create_app
from app.settings import Settings
from tests.conftest import SignedIn


def fail() -> None:
    raise ZeroDivisionError("by zero")


@pytest.mark.parametrize("asked", [{}, {"HX-Request": "true"}, {"Accept": "application/json"}])
def test_a_fault_of_ours_is_answered_with_all_headers(
    app: FastAPI, sign_in: Callable[..., SignedIn], asked: dict[str, str]
) -> None:
    app.add_api_route("/fail", fail)
    answer = sign_in("labeler").get("/fail", headers=asked)
    assert answer.status_code == 500
    assert "Something went wrong on our side." in answer.text
    assert {name: answer.headers[name] for name in SECURITY_HEADERS} == SECURITY_HEADERS
    assert answer.headers["Cache-Control"] == "no-store"


def test_files_are_kept_by_browsers_and_pages_are_not(sign_in: Callable[..., SignedIn]) -> None:
    visitor = sign_in()
    assert "immutable" in visitor.get("/static/css/app.css?v=1").headers["Cache-Control"]
    assert visitor.get("/static/css/app.css").headers["Cache-Control"] == "no-cache"
    assert visitor.get("/static/css/none.css").headers["Cache-Control"] == "no-store"
    assert visitor.get("/sign-in").headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("secure", [True, False])
def test_who_is_told_to_use_https_only(settings: Settings, secure: bool) -> None:
    app = create_app(settings.model_copy(update={"secure_cookies": secure}), settings.database_url or "")
    answer = TestClient(app, base_url="https://testserver").get("/sign-in")
    assert ("max-age=31536000" in answer.headers.get("Strict-Transport-Security", "")) == secure
    assert ("secure" in answer.headers["set-cookie"].lower()) == secure
    assert VISITOR_COOKIE in answer.headers["set-cookie"]
