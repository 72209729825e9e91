"""The labeling page over HTTP: with its script's requests, without JavaScript, and with refused answers."""

import re
from collections.abc import Callable
from uuid import UUID, uuid4

import pytest
from httpx import Response
from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from app.models import Comparison, Judgment, Lease, Project
from tests import factories
from tests.conftest import SignedIn

SCRIPT = {"Accept": "application/json"}


class Shown:
    """Return the card on a page, read as a browser would read it."""

    def __init__(self, html: str) -> None:
        self.html = html
        action = re.search(r'<form class="answer" id="answer" method="post" action="([^"]+)"', html)
        assert action, "no card on this page"
        self.action = action[1]
        self.fields = dict(re.findall(r'<input type="hidden" name="(idempotency_key|rubric_id)" value="([^"]*)"', html))

    def answer(self, preference: object = 1, **fields: object) -> dict[str, object]:
        return self.fields | {"preference": preference, "rationale": "", "duration_ms": ""} | fields


@pytest.fixture
def project(session: Session) -> Project:
    project = factories.project(session, overlap=2)
    for n in range(3):
        factories.comparison(session, project, texts=(f"a{n}", f"b{n}"))
    session.commit()
    return project


def html_of(response: Response) -> str:
    """Return what is on the desk afterwards, requested by the script or not."""
    return response.json()["desk"] if response.headers["content-type"] == "application/json" else response.text


def url(project: Project) -> str:
    return f"/projects/{project.slug}/label"


def judgments(session: Session) -> int:
    return session.scalar(select(func.count()).select_from(Judgment)) or 0


def test_only_labelers(sign_in: Callable[..., SignedIn], project: Project) -> None:
    for roles in (("admin",), ("operator",)):
        client = sign_in(*roles)
        assert client.get(url(project)).status_code == 403
        assert "Nothing is waiting for you" in client.get("/label").text
        assert client.post(f"{url(project)}/{uuid4()}/skip").status_code == 403
    labeler = sign_in("labeler")
    card = Shown(labeler.get(url(project)).text)
    assert labeler.post(card.action, card.answer(), csrf=False).status_code == 403


def test_the_script_gets_the_next_card_in_the_answer(
    sign_in: Callable[..., SignedIn], session: Session, project: Project
) -> None:
    labeler = sign_in("labeler")
    first = Shown(labeler.get(url(project)).text)
    answer = labeler.post(first.action, first.answer(2), headers=SCRIPT)
    assert answer.status_code == 200
    assert (answer.json()["done"], answer.json()["left"]) == (1, "2")
    assert "<html" not in answer.json()["desk"]
    second = Shown(answer.json()["desk"])
    assert second.action != first.action
    assert second.fields["idempotency_key"] != first.fields["idempotency_key"]
    assert judgments(session) == 1


def test_without_javascript_a_page_follows(
    sign_in: Callable[..., SignedIn], session: Session, project: Project
) -> None:
    labeler = sign_in("labeler")
    first = Shown(labeler.get(url(project)).text)
    answer = labeler.post(first.action, first.answer(-1))
    assert (answer.status_code, answer.headers["location"]) == (303, url(project))
    skipped = Shown(labeler.get(url(project)).text)
    assert labeler.post(f"{skipped.action}/skip", skipped.answer()).headers["location"] == url(project)
    assert Shown(labeler.get(url(project)).text).action not in (first.action, skipped.action)
    assert judgments(session) == 1


def test_sending_twice_answers_alike(sign_in: Callable[..., SignedIn], session: Session, project: Project) -> None:
    labeler = sign_in("labeler")
    card = Shown(labeler.get(url(project)).text)
    form = card.answer(3)
    answers = [labeler.post(card.action, form, headers=SCRIPT) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert Shown(html_of(answers[0])).action == Shown(html_of(answers[1])).action
    assert judgments(session) == 1


@pytest.mark.parametrize("headers", [SCRIPT, {}])
def test_a_refused_answer_comes_back_in_its_form(
    sign_in: Callable[..., SignedIn], session: Session, project: Project, headers: dict[str, str]
) -> None:
    labeler = sign_in("labeler")
    card = Shown(labeler.get(url(project)).text)
    answer = labeler.post(card.action, card.answer("", rationale="well <b>thought</b>"), headers=headers)
    assert answer.status_code == 422
    html = html_of(answer)
    assert "No preference was chosen." in html
    assert ">well &lt;b&gt;thought&lt;/b&gt;</textarea>" in html
    assert Shown(html).action == card.action
    assert judgments(session) == 0


def test_a_late_answer_nobody_needs_is_shown_to_copy(
    sign_in: Callable[..., SignedIn], session: Session, project: Project
) -> None:
    session.execute(text("UPDATE comparison SET overlap = 1"))
    session.commit()
    slow, quick = sign_in("labeler"), sign_in("labeler")
    card = Shown(slow.get(url(project)).text)
    session.execute(text("UPDATE lease SET expires_at = now() - interval '1 second'"))
    session.commit()
    taken = Shown(quick.get(url(project)).text)
    assert quick.post(taken.action, taken.answer()).status_code == 303
    answer = slow.post(card.action, card.answer(1, rationale="an hour of thought"), headers=SCRIPT)
    assert answer.status_code == 410
    html = html_of(answer)
    assert "ran out" in html
    assert re.search(r'<textarea id="unsent"[^>]*>an hour of thought</textarea>', html)
    following = Shown(html)
    assert following.action != card.action
    assert re.search(r'<textarea id="rationale"[^>]*></textarea>', html)
    assert judgments(session) == 1


def test_a_stale_rubric_shows_the_card_again_under_the_new_one(
    sign_in: Callable[..., SignedIn], session: Session, project: Project
) -> None:
    labeler = sign_in("labeler")
    card = Shown(labeler.get(url(project)).text)
    newer = factories.rubric(session, project, version=2, guideline="The new rule.")
    session.execute(text("UPDATE lease SET state = 'expired'"))
    session.execute(text("UPDATE comparison SET rubric_id = :id"), {"id": newer.id})
    session.commit()
    answer = labeler.post(card.action, card.answer(2, rationale="kept"), headers=SCRIPT)
    assert answer.status_code == 409
    html = html_of(answer)
    assert "A new version of the rubric applies" in html
    assert "The new rule." in html
    assert ">kept</textarea>" in html
    again = Shown(html)
    assert again.action == card.action
    assert labeler.post(again.action, again.answer(2)).status_code == 303
    assert session.scalars(select(Judgment.rubric_id)).one() == newer.id


def test_unknown_and_foreign_tasks(sign_in: Callable[..., SignedIn], session: Session, project: Project) -> None:
    one, other = sign_in("labeler"), sign_in("labeler")
    card = Shown(one.get(url(project)).text)
    assert other.post(card.action, card.answer()).status_code == 403
    assert other.post(f"{card.action}/skip").status_code == 403
    assert one.post(f"{url(project)}/{uuid4()}", card.answer()).status_code == 404
    assert one.post(f"{url(project)}/nonsense", card.answer()).status_code == 422
    assert one.post(card.action, card.answer(rubric_id="x")).status_code == 422
    assert judgments(session) == 0


def test_the_card_is_blind_and_in_the_order_of_the_lease(sign_in: Callable[..., SignedIn], session: Session) -> None:
    project = factories.project(session, overlap=1)
    policy = factories.model(session, project, name="secret-policy")
    comparison = factories.comparison(session, project, texts=("text of a", "text of b"))
    session.execute(
        text("UPDATE completion SET model_version_id = :m, source = 'secret-source' WHERE id = :id"),
        {"m": policy.id, "id": comparison.completion_a_id},
    )
    session.commit()
    labeler = sign_in("labeler")
    pages = []
    for swapped in (False, True):
        labeler.get(url(project))
        session.execute(text("UPDATE lease SET swapped = :s"), {"s": swapped})
        session.commit()
        html = labeler.get(url(project)).text
        assert "secret" not in html
        assert (html.index("text of a") > html.index("text of b")) is swapped
        pages.append(re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}", "", html).replace("text of a", "").replace("text of b", ""))
    assert pages[0] == pages[1]  # nothing else tells the sides apart


def test_hostile_text_stays_text(sign_in: Callable[..., SignedIn], session: Session) -> None:
    project = factories.project(session)
    hostile = '<script>x</script><img src=x onerror="x"><iframe></iframe>[a](javascript:x)[b](data:text/html,x)'
    prompt = factories.prompt(session, project)
    prompt.messages = [{"role": role, "content": hostile} for role in ("system", "user", "<b>tool</b>")]
    factories.comparison(session, project, prompt=prompt, texts=(hostile, "\u202e" + "y" * 1_000_000))
    session.commit()
    html = sign_in("labeler").get(url(project)).text
    card = html[html.index("<article") :]
    assert not re.search(r"<(script|img|iframe|b>tool)|<[^>]+ onerror=|href=\"(javascript|data):", card)


def test_messages_of_the_conversation_are_shown_by_role(sign_in: Callable[..., SignedIn], session: Session) -> None:
    project = factories.project(session)
    prompt = factories.prompt(session, project)
    prompt.messages = [
        {"role": "system", "content": "Be terse."},
        {"role": "user", "content": "Hello?"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "More."},
    ]
    factories.comparison(session, project, prompt=prompt, texts=("\n", "  "))
    session.commit()
    html = sign_in("labeler").get(url(project)).text
    assert re.search(r'<details class="system" id="system">', html)
    assert re.findall(r'class="turn-role">(\w+)<', html) == ["User", "Assistant", "User"]
    assert html.count("This response is empty.") == 2


def test_start_goes_where_there_is_work(sign_in: Callable[..., SignedIn], session: Session, project: Project) -> None:
    labeler = sign_in("labeler")
    assert labeler.get("/label").headers["location"] == url(project)
    session.execute(text("UPDATE comparison SET state = 'withdrawn'"))
    session.commit()
    assert "Nothing is waiting for you" in labeler.get("/label").text


def test_while_sampling_the_page_asks_again(sign_in: Callable[..., SignedIn], session: Session) -> None:
    project = factories.project(session)
    factories.run(session, project, "sample", state="running", progress_done=2, progress_total=60)
    session.commit()
    labeler = sign_in("labeler")
    html = labeler.get(url(project)).text
    assert "2 of 60" in html
    assert 'data-poll="3"' in html
    factories.comparison(session, project)
    session.commit()
    Shown(html_of(labeler.get(url(project), headers=SCRIPT)))
    assert session.scalars(select(Comparison.lease_count)).one() == 1


def test_skipping_the_only_one_says_so(sign_in: Callable[..., SignedIn], session: Session) -> None:
    project = factories.project(session)
    factories.comparison(session, project)
    session.commit()
    labeler = sign_in("labeler")
    card = Shown(labeler.get(url(project)).text)
    for headers in (SCRIPT, {}):
        answer = labeler.post(f"{card.action}/skip", headers=headers)
        assert answer.status_code == 200
        assert "Only the comparison you skipped is left" in html_of(answer)
    Shown(labeler.get(url(project)).text)


def test_who_comes_back_has_the_card_again_unless_others_took_it(
    sign_in: Callable[..., SignedIn], session: Session, project: Project
) -> None:
    session.execute(text("UPDATE comparison SET overlap = 1"))
    session.commit()
    labeler, other = sign_in("labeler"), sign_in("labeler")
    lease = lease_of(Shown(labeler.get(url(project)).text))

    def here() -> list[str]:
        return labeler.post(f"{url(project)}/here", {"desk": lease}).json()["live"]

    assert here() == [lease]
    session.execute(text("UPDATE lease SET state = 'expired'"))
    session.commit()
    assert here() == [lease]  # nobody had it meanwhile
    session.execute(text("UPDATE lease SET state = 'expired'"))
    session.commit()
    assert Shown(other.get(url(project)).text)
    assert lease not in here()
    assert labeler.post(f"{url(project)}/here", {"desk": ""}).status_code == 200


def test_closing_a_tab_gives_back_what_it_had_loaded_ahead_not_what_another_tab_shows(
    sign_in: Callable[..., SignedIn], session: Session, project: Project
) -> None:
    labeler = sign_in("labeler")
    first = Shown(labeler.get(url(project)).text)
    session.execute(text("UPDATE lease SET created_at = created_at - interval '1 second'"))
    session.commit()
    following = Shown(labeler.get(f"{url(project)}/ahead", params={"beside": lease_of(first)}).json()["card"])
    labeler.post(first.action, first.answer(), headers=SCRIPT)  # in one tab, which now shows what followed
    assert labeler.post(f"{following.action}/release").status_code == 204  # the other tab is closed
    states = dict(session.execute(select(Lease.id, Lease.state)).all())
    assert states[UUID(lease_of(following))] == "live"
    ahead = Shown(labeler.get(f"{url(project)}/ahead", params={"beside": lease_of(following)}).json()["card"])
    assert labeler.post(f"{ahead.action}/release").status_code == 204
    session.expire_all()
    assert session.scalar(select(Lease.state).where(Lease.id == UUID(lease_of(ahead)))) == "released"


def lease_of(card: Shown) -> str:
    return card.action.rsplit("/", 1)[1]
