"""Names without a space, as long as they may be, make no page wider than the window."""

from collections.abc import Callable

import pytest
from playwright.sync_api import Page
from sqlalchemy.orm import Session

from app.settings import Settings
from tests.app import world
from tests.app.test_every_route import ROUTES, WHO
from tests.app.test_stored_markup import NO_PAGES, QUERIES

WIDTHS = (390, 1280)


def test_no_name_makes_a_page_wider(
    session: Session,
    settings: Settings,
    open_page: Callable[..., Page],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(world, "HOSTILE", "W" * 200)
    made = world.build(session, settings.artifacts_root)
    session.commit()
    labeler, staff = open_page(user=made.labeler), open_page("admin", "operator")
    looked_at, wider = 0, []
    for route in ROUTES:
        if route.method != "GET" or route.path.startswith(("/join", "/sign-in")) or route.path in NO_PAGES:
            continue
        page = labeler if WHO[route.name] == "l" else staff
        answer = page.goto(route.address(made.values) + QUERIES.get(route.path, ""))
        assert answer is not None
        if page.locator("header.top").count():  # a whole page, and not a part of one
            looked_at += 1
            for width in WIDTHS:
                page.set_viewport_size({"width": width, "height": 900})
                if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
                    wider.append((route.path, width))
    assert wider == []
    assert looked_at > 40
