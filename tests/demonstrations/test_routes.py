"""The pages of demonstrations: who may see which page, and what a refused form keeps."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from html import unescape
from uuid import uuid4

import pytest
from sqlalchemy.orm import Session

from app.demonstrations import service
from app.models import DemonstrationTask, Project, ProjectLabeler
from tests import factories
from tests.conftest import SignedIn
from tests.demonstrations.desk import demonstrations, task, tasks
from tests.qualification.quizzes import QUIZ, take, with_quiz

SignIn = Callable[..., SignedIn]
HTMX = {"HX-Request": "true"}
HOSTILE = '<script>alert(1)</script> <img src=x onerror=alert(2)> [x](javascript:alert(3)) \u202eevil ‌"quoted"'


def base(project: Project) -> str:
    return f"/projects/{project.slug}/demonstrations"


@pytest.mark.parametrize(
    ("roles", "path", "status"),
    [
        (("labeler",), "", 303),
        (("labeler",), "/write", 200),
        (("labeler",), "/own", 200),
        (("labeler",), "/ask", 403),
        (("labeler",), "/review", 403),
        (("labeler",), "/1", 403),
        (("admin",), "", 200),
        (("admin",), "/write", 403),
        (("admin",), "/ask", 200),
        (("admin",), "/999", 404),
        (("admin",), f"/{2**70}", 404),
        (("operator",), "/ask", 403),
        ((), "/write", 303),
    ],
)
def test_who_sees_what(session: Session, sign_in: SignIn, roles: tuple[str, ...], path: str, status: int) -> None:
    project = factories.project(session)
    session.commit()
    assert sign_in(*roles).get(base(project) + path).status_code == status


def test_the_next_prompt_comes_in_the_same_response(session: Session, sign_in: SignIn) -> None:
    project = factories.project(session)
    first, second = task(session, project, "First question?"), task(session, project, "Second question?")
    labeler = sign_in("labeler")
    assert "First question?" in labeler.get(base(project) + "/write").text
    form = {"prompt_id": first.prompt_id, "text": "An answer.", "duration_ms": ""}
    answered = labeler.post(f"{base(project)}/write/{first.id}", form, headers=HTMX)
    assert answered.status_code == 200
    assert "Second question?" in answered.text
    assert "<html" not in answered.text
    assert labeler.user
    assert f'data-sent="{labeler.user.id}/{project.slug}/task-{first.id}"' in answered.text
    skipped = labeler.post(f"{base(project)}/write/{second.id}/skip", {"reason": "unclear"}, headers=HTMX)
    assert "Only prompts you skipped are left" in skipped.text
    assert "Second question?" in labeler.get(base(project) + "/write?skipped=true").text


def test_without_javascript_a_page_follows(session: Session, sign_in: SignIn) -> None:
    project = factories.project(session)
    given = task(session, project)
    labeler = sign_in("labeler")
    form = {"prompt_id": given.prompt_id, "text": "An answer."}
    sent = labeler.post(f"{base(project)}/write/{given.id}", form)
    assert (sent.status_code, sent.headers["location"]) == (303, f"{base(project)}/write")
    assert "No prompt needs a written answer" in labeler.get(f"{base(project)}/write").text
    assert [row.author_id for row in demonstrations(session)] == [labeler.user.id if labeler.user else None]


def test_a_text_that_came_too_late_is_given_back(session: Session, sign_in: SignIn) -> None:
    project = factories.project(session)
    given, following = task(session, project, "Lost question?"), task(session, project, "Next question?")
    labeler = sign_in("labeler")
    session.delete(given)
    session.commit()
    form = {"prompt_id": following.prompt_id, "text": "Minutes of work & more."}
    answered = labeler.post(f"{base(project)}/write/{given.id}", form, headers=HTMX)
    assert answered.status_code == 410
    assert answered.headers["HX-Retarget"] == "#desk"
    assert "no longer needs an answer" in answered.text
    assert "Next question?" in answered.text
    kept = re.search(r'<textarea id="unsent"[^>]*>\n?(.*?)</textarea>', answered.text, re.DOTALL)
    assert kept is not None
    assert unescape(kept[1]).strip() == "Minutes of work & more."


def test_an_empty_text_keeps_the_prompt_on_the_desk(session: Session, sign_in: SignIn) -> None:
    project = factories.project(session)
    given = task(session, project, "The question?")
    labeler = sign_in("labeler")
    labeler.get(base(project) + "/write")
    answered = labeler.post(f"{base(project)}/write/{given.id}", {"prompt_id": given.prompt_id, "text": "  "})
    assert answered.status_code == 422
    assert "Nothing is written yet." in answered.text
    assert "The question?" in answered.text


def test_hostile_texts_stay_texts(session: Session, sign_in: SignIn) -> None:
    project, labeler, admin = factories.project(session), sign_in("labeler"), sign_in("admin")
    prompt = factories.prompt(session, project, HOSTILE, domain=HOSTILE)
    sample = factories.completion(session, prompt, HOSTILE)
    given = task(session, project, prompt=prompt, completion_id=sample.id)
    session.commit()
    pages = [labeler.get(base(project) + "/write").text]
    text = HOSTILE + " </textarea><script>alert(4)</script>"
    preview = {"text": text, "task_id": given.id}
    pages.append(labeler.post(base(project) + "/preview", preview, headers=HTMX).text)
    form = {"prompt_id": prompt.id, "text": text}
    assert labeler.post(f"{base(project)}/write/{given.id}", form).status_code == 303
    (written,) = demonstrations(session)
    here = f"{base(project)}/{written.id}"
    decided = {"seen": service.seen(written), "text": text + HOSTILE, "note": HOSTILE}
    assert admin.post(here + "/approve", decided).status_code == 303
    pages += [admin.get(here).text, admin.get(base(project)).text, admin.get(base(project) + "/ask").text]
    pages += [labeler.get(f"{base(project)}/own").text, labeler.get(f"{base(project)}/own/{written.id}").text]
    for html in pages:
        assert "<script>alert" not in html
        assert "<img src=x" not in html
        assert 'href="javascript:' not in html
        assert "alert(1)" in html


def test_a_text_beyond_the_limit_is_refused_by_name(session: Session, sign_in: SignIn) -> None:
    project, labeler = factories.project(session), sign_in("labeler")
    given = task(session, project)
    session.commit()
    form = {"prompt_id": given.prompt_id, "text": "x" * 100_001}
    answered = labeler.post(f"{base(project)}/write/{given.id}", form, headers=HTMX)
    assert answered.status_code == 422
    assert "text" in answered.text
    # The preview shows a single word of a megabyte as written.
    assert labeler.post(base(project) + "/preview", {"text": "y" * 100_000}, headers=HTMX).status_code == 200


def test_ones_own_list_tells_what_became_of_each(session: Session, sign_in: SignIn) -> None:
    project, labeler = factories.project(session), sign_in("labeler")
    assert labeler.user is not None
    prompt = factories.prompt(session, project)
    mine = factories.demonstration(
        session,
        prompt,
        "Too short.",
        digest=service.digest("Too short."),
        author_id=labeler.user.id,
        state="rejected",
        review_note="Say why.",
    )
    other = factories.demonstration(session, prompt, "Somebody else's.", author_id=factories.user(session).id)
    session.commit()
    listed = labeler.get(base(project) + "/own").text
    assert "Too short." in listed
    assert "Say why." in listed
    assert "Somebody else" not in listed
    assert labeler.get(f"{base(project)}/own/{other.id}").status_code == 403
    assert "Say why." in labeler.get(f"{base(project)}/own/{mine.id}").text
    preview = {"text": "x", "demonstration_id": other.id}
    assert labeler.post(base(project) + "/preview", preview, headers=HTMX).status_code == 403

    here = f"{base(project)}/own/{mine.id}"
    seen = service.seen(mine)
    assert labeler.post(here, {"seen": seen, "text": "Too short."}).status_code == 422
    sent = labeler.post(here, {"seen": seen, "text": "Longer, because."})
    assert sent.headers["location"] == f"{base(project)}/own?sent={mine.id}"
    assert (
        f'data-sent="{labeler.user.id}/{project.slug}/demonstration-{mine.id}"'
        in labeler.get(sent.headers["location"]).text
    )
    stale = labeler.post(here, {"seen": seen, "text": "Another try."})
    assert stale.status_code == 409
    assert "Another try." in stale.text


def test_a_stale_decision_shows_what_stands_now_and_what_was_typed(session: Session, sign_in: SignIn) -> None:
    project, admin = factories.project(session), sign_in("admin")
    written = factories.demonstration(session, factories.prompt(session, project), "First text.", state="pending")
    session.commit()
    old = service.seen(written)
    written.text, written.digest = "Second text.", service.digest("Second text.")
    session.commit()
    answered = admin.post(f"{base(project)}/{written.id}/approve", {"seen": old, "text": "First text, edited."})
    assert answered.status_code == 409
    editor = re.search(r'<textarea id="text"[^>]*>\n(.*?)</textarea>', answered.text, re.DOTALL)
    assert editor is not None
    assert editor[1] == "Second text."
    assert "First text, edited." in answered.text
    session.expire_all()
    assert written.state == "pending"


def test_decisions_lead_to_the_next_and_at_the_end_to_the_list(session: Session, sign_in: SignIn) -> None:
    project, admin = factories.project(session), sign_in("admin")
    rows = [factories.demonstration(session, factories.prompt(session, project), state="pending") for _ in range(2)]
    session.commit()
    assert admin.get(base(project) + "/review").headers["location"] == f"{base(project)}/{rows[0].id}"
    form = {"seen": service.seen(rows[0]), "text": rows[0].text, "note": ""}
    done = admin.post(f"{base(project)}/{rows[0].id}/approve", form)
    assert done.headers["location"] == f"{base(project)}/{rows[1].id}"
    form = {"seen": service.seen(rows[1]), "text": rows[1].text, "note": "No."}
    done = admin.post(f"{base(project)}/{rows[1].id}/reject", form)
    assert done.headers["location"] == base(project)
    assert admin.get(base(project) + "/review").headers["location"] == base(project)


def test_asking_says_how_many_prompts_fit(session: Session, sign_in: SignIn) -> None:
    project, admin = factories.project(session), sign_in("admin")
    for n in range(3):
        factories.prompt(session, project, domain="law" if n else "sea")
    session.commit()
    ask = base(project) + "/ask"
    assert "<b>3</b> prompts match" in admin.get(ask).text
    part = admin.get(ask + "?domain=law&count=5", headers=HTMX).text
    assert "<b>2</b> prompts match" in part
    assert "<html" not in part
    refused = admin.post(ask, {"domain": "law", "count": "5"})
    assert refused.status_code == 422
    assert "Only 2 prompts match, not 5" in refused.text
    form = {"domain": "law", "count": "2", "key": str(uuid4())}
    done = admin.post(ask, form)
    assert done.headers["location"] == f"{ask}?asked=2"
    assert "2 prompts are now waiting" in admin.get(done.headers["location"]).text
    assert admin.post(ask, form).headers["location"] == f"{ask}?asked=2"  # a double click
    waiting: list[DemonstrationTask] = tasks(session)
    admin.post(ask + "/withdraw", {"task_id": str(waiting[0].id)})
    assert len(tasks(session)) == 1
    admin.post(ask + "/withdraw")
    assert tasks(session) == []


def test_the_labeling_pages_tell_of_prompts_to_write_for(session: Session, sign_in: SignIn) -> None:
    project, labeler = factories.project(session), sign_in("labeler")
    session.commit()
    here = f'href="{base(project)}/write"'
    assert here not in labeler.get("/label").text
    task(session, project)
    session.commit()
    assert here in labeler.get("/label").text
    assert here in labeler.get(f"/projects/{project.slug}/label").text


def test_the_navigation_offers_writing_where_there_is_some(session: Session, sign_in: SignIn) -> None:
    project, labeler = factories.project(session), sign_in("labeler")
    session.commit()
    link = f'href="{base(project)}/write"'
    home = f"/projects/{project.slug}"
    assert link not in labeler.get(home).text
    given = task(session, project)
    session.commit()
    assert link in labeler.get(home).text
    labeler.post(f"{base(project)}/write/{given.id}", {"prompt_id": given.prompt_id, "text": "An answer."})
    assert link in labeler.get(home).text  # to see what became of it
    assert link not in sign_in("labeler").get(home).text
    assert f'href="{base(project)}"' in sign_in("admin").get(home).text


def test_who_has_not_passed_the_quiz_is_led_to_it(session: Session, sign_in: SignIn) -> None:
    project, labeler = factories.project(session), sign_in("labeler")
    with_quiz(session, project)
    waiting = task(session, project, "Why is water wet?")
    session.commit()
    page = labeler.get(base(project) + "/write").text
    assert "Why is water wet?" not in page
    assert f'href="/projects/{project.slug}/quiz"' in page
    assert labeler.user
    take(session, project, labeler.user)
    session.commit()
    assert "Why is water wet?" in labeler.get(base(project) + "/write").text
    # A new quiz does not take back open tasks.
    with_quiz(session, project, 2, quiz=QUIZ[:1])
    session.commit()
    assert "Why is water wet?" in labeler.get(base(project) + "/write").text
    form = {"prompt_id": waiting.prompt_id, "text": "An answer."}
    assert labeler.post(f"{base(project)}/write/{waiting.id}", form).status_code == 303
    task(session, project, "And why is fire hot?")
    session.commit()
    assert "fire" not in labeler.get(base(project) + "/write").text


def test_whoever_goes_on_writing_keeps_the_prompt(session: Session, sign_in: SignIn) -> None:
    project, labeler = factories.project(session), sign_in("labeler")
    task(session, project)
    session.commit()
    labeler.get(base(project) + "/write")
    [held] = tasks(session)
    held.expires_at = soon = datetime.now(UTC) + timedelta(minutes=1)
    session.commit()
    labeler.post(base(project) + "/preview", {"text": "Still at it"}, headers=HTMX)
    [held] = tasks(session)
    assert held.expires_at
    assert held.expires_at > soon + timedelta(minutes=30)


def test_a_preview_shows_no_text_but_that_of_ones_own_task(session: Session, sign_in: SignIn) -> None:
    """Responses cannot be read by their ids, which would tell A from B, and new from old."""
    project = factories.project(session)
    secret = factories.comparison(session, project, texts=("SECRET A", "SECRET B"))
    sample = factories.completion(session, factories.prompt(session, project), "SECRET sample")
    others = task(session, project, completion_id=sample.id)
    ann, bob = sign_in("labeler"), sign_in("labeler")
    session.commit()
    assert "SECRET sample" in bob.get(base(project) + "/write").text  # their own task
    own = task(
        session, project, completion_id=factories.completion(session, factories.prompt(session, project), "MINE").id
    )
    session.commit()
    desk = ann.get(base(project) + "/write").text
    assert "MINE" in desk
    assert not re.search(r"completion", desk)

    def preview(**fields: object) -> str:
        answered = ann.post(base(project) + "/preview", {"text": "x"} | fields, headers=HTMX)
        assert answered.status_code == 200
        return answered.text

    for number in (secret.completion_a_id, secret.completion_b_id, sample.id):
        for name in ("completion_id", "task_id", "sample_id", "original"):
            assert "SECRET" not in preview(**{name: number})
    assert "SECRET" not in preview(task_id=others.id)
    assert "MINE" in preview(task_id=own.id)
    assert ann.user
    session.add(ProjectLabeler(project_id=project.id, labeler_id=ann.user.id, state="removed"))
    session.commit()
    refused = ann.post(base(project) + "/preview", {"text": "x", "task_id": own.id}, headers=HTMX)
    assert refused.status_code == 403
    assert "MINE" not in refused.text


def test_who_is_paused_while_writing_keeps_the_text(session: Session, sign_in: SignIn) -> None:
    project, labeler = factories.project(session), sign_in("labeler")
    given = task(session, project)
    session.commit()
    labeler.get(base(project) + "/write")
    assert labeler.user
    standing = ProjectLabeler(project_id=project.id, labeler_id=labeler.user.id, state="paused", reason="Call Bob.")
    session.add(standing)
    session.commit()
    form = {"prompt_id": given.prompt_id, "text": "An hour of work."}
    refused = labeler.post(f"{base(project)}/write/{given.id}", form, headers=HTMX)
    assert refused.status_code == 403
    assert "Call Bob." in refused.text
    assert re.search(r'<textarea id="unsent"[^>]*>\n?An hour of work.</textarea>', refused.text)
    assert demonstrations(session) == []


def test_author_and_reviewer_see_all_that_was_done(session: Session, sign_in: SignIn) -> None:
    project, labeler, admin = factories.project(session), sign_in("labeler"), sign_in("admin")
    given = task(session, project)
    session.commit()
    form = {"prompt_id": given.prompt_id, "text": "Water is wet."}
    labeler.post(f"{base(project)}/write/{given.id}", form)
    [written] = demonstrations(session)
    mine, case = f"{base(project)}/own/{written.id}", f"{base(project)}/{written.id}"
    for note, text in (("Say why.", "Water is wet, I think."), ("Leave yourself out.", "Water is wet: it clings.")):
        admin.post(f"{case}/reject", {"seen": service.seen(demonstrations(session)[0]), "text": "x", "note": note})
        labeler.post(mine, {"seen": service.seen(demonstrations(session)[0]), "text": text})
    seen = service.seen(demonstrations(session)[0])
    refused = admin.post(f"{case}/reject", {"seen": seen, "text": "x", "note": ""})
    assert refused.status_code == 422  # it leaves no trace
    admin.post(f"{case}/approve", {"seen": seen, "text": "Water is wet: it clings to things.", "note": "Thanks."})
    for html in (labeler.get(mine).text, admin.get(case).text):
        steps = re.findall(r"<b>(Approved|Rejected|Revised)</b>", html)
        assert steps == ["Rejected", "Revised", "Rejected", "Revised", "Approved"]
        for said in ("Say why.", "Leave yourself out.", "Thanks."):
            assert said in html
        assert "<mark>, I think</mark>" in html  # what the author took back
        assert "<mark> to things</mark>" in html
