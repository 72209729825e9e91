"""The audit log's page: the newest events first, by kind and by person, page by page."""

import re
from collections.abc import Callable

from bs4 import BeautifulSoup
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.audit import audit
from app.models import AuditEvent
from app.trail import queries
from tests import factories
from tests.conftest import SignedIn


def rows(client: SignedIn, url: str) -> tuple[list[list[str]], BeautifulSoup]:
    page = BeautifulSoup(client.get(url).text, "html.parser")
    found = page.select("tbody tr")
    return [[" ".join(cell.get_text(" ").split()) for cell in row.select("td")[1:]] for row in found], page


def test_who_did_what_page_by_page(sign_in: Callable[..., SignedIn], session: Session) -> None:
    project, other = factories.project(session), factories.project(session)
    ann, bob = (factories.user(session, "operator", name=name) for name in ("Ann", "<i>Bob</i>"))
    for n in range(queries.PAGE + 1):
        audit(session, ann.id, "round.started", project.id, number=n, config={"beta": 0.1, "note": "x" * 200})
    audit(session, bob.id, "run.cancelled", project.id, run=7, reason="", empty=None)
    audit(session, None, "round.decided", project.id, adopted=False)
    audit(session, bob.id, "round.retried", other.id)
    session.commit()
    client, here = sign_in("admin"), f"/projects/{project.slug}/audit-log"
    assert here in client.get(f"/projects/{project.slug}/settings").text

    shown, page = rows(client, here)
    assert shown[0] == ["the service", "round: decided", "adopted: false"]
    assert shown[1] == ["<i>Bob</i>", "run: cancelled", "run: 7"]
    assert len(shown) == queries.PAGE
    assert [each.text for each in page.select("select[name=action] option")][1:] == [
        *("round: decided", "round: started", "run: cancelled")
    ]
    assert [each.text for each in page.select("select[name=person] option")][2:] == ["<i>Bob</i>", "Ann"]
    older = page.select_one("a[rel=next]")
    assert older is not None
    rest, _ = rows(client, str(older["href"]))
    numbers = [int(re.findall(r"number: (\d+)", each[2])[0]) for each in (shown[2:] + rest)]
    assert numbers == list(range(queries.PAGE, -1, -1))  # each event once

    assert [each[0] for each in rows(client, f"{here}?person={bob.id}")[0]] == ["<i>Bob</i>"]
    assert [each[1] for each in rows(client, f"{here}?person=0&action=")[0]] == ["round: decided"]
    assert rows(client, f"{here}?person={bob.id}&action=round.started")[0] == []
    assert len(rows(client, f"{here}?person={ann.id}&action=round.started")[0]) == queries.PAGE
    assert list(session.scalars(select(AuditEvent.action).where(AuditEvent.project_id == other.id))) == [
        "round.retried"
    ]
