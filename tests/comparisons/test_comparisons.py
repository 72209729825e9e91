"""The table of comparisons: its filters, its pages, and bulk actions."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.comparisons import queries
from app.comparisons.forms import Wanted
from app.models import AuditEvent, Comparison, Project
from tests import factories
from tests.conftest import SignedIn
from tests.review.cases import judged


@pytest.fixture
def project(session: Session) -> Project:
    return factories.project(session, slug="p")


def found(session: Session, project: Project, **wanted: Any) -> list[int]:
    return [row.comparison.id for row in queries.page(session, project.id, Wanted(**wanted)).rows]


def test_filters(session: Session, project: Project) -> None:
    law = factories.prompt(session, project, "Is this LEGAL?", domain="law")
    round_ = factories.round_(session, project, number=3)
    plain = factories.comparison(session, project, prompt=law)
    # Name the prompts, because a number in a prompt could match another comparison's.
    one, two = (factories.prompt(session, project, f"{name}?") for name in ("One", "Two"))
    split = judged(session, project, 2, -2, 2, prompt=one)  # agreement: one pair of three
    agreed = judged(session, project, 1, 1, prompt=two, round_id=round_.id)
    factories.comparison(session, factories.project(session))
    everything = [agreed.id, split.id, plain.id]
    assert found(session, project) == everything
    assert found(session, project, text="legal") == [plain.id]
    assert split.id in found(session, project, text=f" {split.id} ")  # other prompts may hold the number
    assert found(session, project, text="9" * 30) == []
    assert found(session, project, state="settled") == [agreed.id]
    assert found(session, project, slice="domain=law") == [plain.id]
    assert found(session, project, slice="purpose=train") == everything
    assert found(session, project, round="3") == [agreed.id]
    assert found(session, project, below="34") == [split.id]
    assert found(session, project, below="33") == []
    assert found(session, project, least="2") == [agreed.id, split.id]
    assert found(session, project, most="2") == [agreed.id, plain.id]
    assert found(session, project, least="3", most="3", state="in_review") == [split.id]
    assert found(session, project, before=agreed.id) == [split.id, plain.id]


def test_a_page_looks_at_a_window_and_says_where_it_ended(
    session: Session, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "WINDOW", 4)
    monkeypatch.setattr(queries, "PAGE", 2)
    ids = [factories.comparison(session, project, overlap=n + 1).id for n in range(9)]
    seen: list[list[int]] = []
    wanted: Wanted | None = Wanted()
    while wanted:
        page = queries.page(session, project.id, wanted)
        assert page.searched is None
        seen.append([row.comparison.id for row in page.rows])
        wanted = wanted.model_copy(update={"before": page.following}) if page.following else None
    assert [id_ for ids_ in seen for id_ in ids_] == ids[::-1]
    # Only the oldest comparison matches: two windows are empty.
    judged_one = session.get_one(Comparison, ids[0])
    factories.judgment(session, judged_one, preference=1)
    page = queries.page(session, project.id, Wanted(least="1"))
    assert (page.rows, page.following, page.searched) == ([], ids[5], 4)
    page = queries.page(session, project.id, Wanted(least="1", before=ids[1]))
    assert ([row.comparison.id for row in page.rows], page.following) == ([ids[0]], None)


def test_agreement_is_hidden_from_who_may_still_judge(
    session: Session, project: Project, sign_in: Callable[..., SignedIn]
) -> None:
    opened = factories.comparison(session, project, overlap=3, agreement=0.25)
    session.commit()
    assert "25%" in sign_in("admin").get("/projects/p/comparisons").text
    page = sign_in("admin", "labeler").get("/projects/p/comparisons").text
    assert "25%" not in page
    assert "hidden" in page
    assert f"/projects/p/review/{opened.id}" in page


def test_many_at_once(session: Session, project: Project, sign_in: Callable[..., SignedIn]) -> None:
    settled = [judged(session, project, 1, 1) for _ in range(2)]
    opened = factories.comparison(session, project)
    stranger = factories.comparison(session)
    session.commit()
    admin, url = sign_in("admin"), "/projects/p/comparisons?state=settled"
    ids = [row.id for row in (*settled, opened, stranger)]
    refused = admin.post(url, {"ids": ids, "do": "withdraw"})
    assert (refused.status_code, "Withdrawing needs a reason" in refused.text) == (422, True)
    assert f'value="{settled[0].id}" aria-label="Select comparison {settled[0].id}" checked' in refused.text
    assert admin.post(url, {"do": "request"}).status_code == 422

    answer = admin.post(url, {"ids": ids, "do": "more", "more": "2"})
    assert (answer.status_code, answer.headers["location"]) == (303, f"{url}&did=more&n=2&left_out=2")
    told = admin.get(answer.headers["location"]).text
    assert "2 comparisons sent back to labelers" in told
    assert "2 were left out" in told
    session.expire_all()
    assert [(row.state, row.overlap) for row in settled] == [("open", 4), ("open", 4)]
    assert admin.post(url, {"ids": ids, "do": "more", "more": "2"}).headers["location"].endswith("left_out=4")

    admin.post(url, {"ids": ids, "do": "withdraw", "note": "Wrong batch."})
    session.expire_all()
    assert [row.state for row in (*settled, opened, stranger)] == ["withdrawn"] * 3 + ["open"]
    events = session.scalars(select(AuditEvent).where(AuditEvent.action == "review.withdrawn")).all()
    assert [event.details["note"] for event in events] == ["Wrong batch."] * 3
