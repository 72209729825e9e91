"""Writing demonstrations and reviewing them as people do it, in a real browser."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from playwright.sync_api import Page, expect
from sqlalchemy import update
from sqlalchemy.orm import Session

from app.access.sessions import SESSION_COOKIE
from app.accounts import service as accounts
from app.models import DemonstrationTask, Project, User
from tests import factories
from tests.browser.keys import press
from tests.browser.pictures import take_picture
from tests.demonstrations.desk import demonstrations, task, tasks

OpenPage = Callable[..., Page]
HOSTILE = '<img src=x onerror="document.title=1"><script>document.title=2</script>[x](javascript:document.title=3)'


def project_to_write_for(session: Session, n: int, *, samples: bool = False) -> Project:
    project = factories.project(session, name="Water")
    factories.rubric(session, project, guideline="# Be kind\n\nAnswer *fully*.")
    for i in range(n):
        prompt = factories.prompt(session, project, f"Question number {i}?", domain="chat")
        sample = factories.completion(session, prompt, f"The sample says {i} and rain.") if samples else None
        task(session, project, prompt=prompt, completion_id=sample.id if sample else None)
    session.commit()
    return project


def base(project: Project) -> str:
    return f"/projects/{project.slug}/demonstrations"


def test_several_answers_by_keyboard_only(session: Session, open_page: OpenPage) -> None:
    project = project_to_write_for(session, 3)
    page = open_page("labeler")
    page.goto(base(project) + "/write")
    question = page.locator(".conversation")
    expect(question).to_contain_text("Question number 0?")
    page.evaluate("window.neverReloaded = true")
    press(page, "r")
    expect(page.get_by_role("complementary", name="Rubric")).to_be_visible()
    press(page, "Escape")
    press(page, "e")
    page.keyboard.type("It is **deep**.\n\n- one\n- two")
    expect(page.locator("[data-count]")).to_have_text("28 characters · 5 words")
    expect(page.locator("#preview strong")).to_have_text("deep")
    expect(page.locator("#preview li")).to_have_count(2)
    press(page, "Control+Enter")
    expect(question).to_contain_text("Question number 1?")
    expect(page.locator("#announce")).to_have_text("Sent. Prompt 2 of today.")
    expect(page.locator("#task-title")).to_be_focused()

    press(page, "s")
    expect(page.get_by_role("button", name="The prompt makes no sense")).to_be_focused()
    press(page, "Enter")
    expect(question).to_contain_text("Question number 2?")
    press(page, "e")
    page.keyboard.type("Zwei Wörter")
    press(page, "Escape")
    press(page, "?")
    expect(page.get_by_role("dialog")).to_be_visible()
    press(page, "Escape")
    press(page, "Control+Enter")
    expect(page.get_by_role("heading", name="Only prompts you skipped are left")).to_be_focused()
    assert page.evaluate("window.neverReloaded") is True
    page.get_by_role("link", name="Show them again").click()
    expect(question).to_contain_text("Question number 1?")

    first, second = demonstrations(session)
    assert (first.text, second.text) == ("It is **deep**.\n\n- one\n- two", "Zwei Wörter")
    assert first.duration_ms is not None
    assert 0 < first.duration_ms < 120_000
    assert [skip["reason"] for skip in tasks(session)[0].skips] == ["unclear"]


def test_a_sample_is_edited_compared_and_restored(session: Session, open_page: OpenPage) -> None:
    project = project_to_write_for(session, 2, samples=True)
    page = open_page("labeler")
    page.goto(base(project) + "/write")
    editor = page.get_by_label("Your answer")
    expect(editor).to_have_value("The sample says 0 and rain.")
    expect(page.locator("[data-count]")).to_contain_text("not changed")
    editor.fill("The sample says 0 and snow.")
    press(page, "Escape")
    press(page, "c")
    changes = page.locator(".preview-changes")
    expect(changes.locator(".changed-removed mark")).to_have_text("rain")
    expect(changes.locator(".changed-added mark")).to_have_text("snow")
    expect(page.locator(".preview-text")).to_be_hidden()
    page.get_by_role("button", name="Restore the sample").click()
    expect(editor).to_have_value("The sample says 0 and rain.")
    expect(changes).to_contain_text("No changes.")
    editor.fill("The sample says 0 and sun.")
    press(page, "Control+Enter")
    expect(editor).to_have_value("The sample says 1 and rain.")
    (row,) = demonstrations(session)
    assert (row.text, row.completion_id is not None) == ("The sample says 0 and sun.", True)


def test_a_draft_outlives_reload_and_a_lost_connection(session: Session, open_page: OpenPage) -> None:
    project = project_to_write_for(session, 2)
    page = open_page("labeler")
    page.goto(base(project) + "/write")
    editor = page.get_by_label("Your answer")
    editor.fill("Half a thought")
    page.reload()
    expect(editor).to_have_value("Half a thought")
    expect(page.locator("#preview")).to_contain_text("Half a thought")
    expect(page.get_by_text("This is your saved draft.")).to_be_visible()

    page.context.set_offline(True)
    editor.fill("Half a thought, and the rest")
    press(page, "Control+Enter")
    expect(page.locator("#messages")).to_contain_text("What you typed is kept")
    expect(editor).to_have_value("Half a thought, and the rest")
    page.context.set_offline(False)
    press(page, "Control+Enter")
    expect(page.locator(".conversation")).to_contain_text("Question number 1?")
    expect(editor).to_have_value("")
    assert [row.text for row in demonstrations(session)] == ["Half a thought, and the rest"]
    assert page.evaluate("Object.keys(localStorage).filter((key) => key.includes('task-')).length") == 0

    # Start over: the draft goes, also for the next reload.
    editor.fill("No")
    page.reload()
    page.get_by_role("button", name="Start over").click()
    expect(editor).to_have_value("")
    page.reload()
    expect(editor).to_have_value("")


def test_a_text_whose_prompt_was_taken_is_shown_to_be_copied(session: Session, open_page: OpenPage) -> None:
    project = project_to_write_for(session, 2)
    page = open_page("labeler")
    page.goto(base(project) + "/write")
    page.get_by_label("Your answer").fill("Too late, but mine.")
    taken = tasks(session)[0]
    taken.labeler_id = factories.user(session).id
    taken.expires_at = datetime.now(UTC) + timedelta(hours=1)
    session.commit()
    press(page, "Control+Enter")
    expect(page.get_by_label("Copy what you wrote:")).to_have_value("Too late, but mine.")
    expect(page.get_by_role("alert").filter(has_text="somebody else is writing")).to_be_visible()
    expect(page.locator(".conversation")).to_contain_text("Question number 1?")
    assert demonstrations(session) == []


def test_the_circle_of_rejecting_and_revising(session: Session, open_page: OpenPage) -> None:
    project = project_to_write_for(session, 1)
    writer, reviewer = open_page("labeler"), open_page("admin")
    writer.goto(base(project) + "/write")
    writer.get_by_label("Your answer").fill("Too short.")
    press(writer, "Control+Enter")
    expect(writer.get_by_role("heading", name="No prompt needs a written answer")).to_be_visible()

    reviewer.goto(base(project))
    reviewer.get_by_role("link", name="Review 1", exact=True).click()
    expect(reviewer.get_by_label("The answer")).to_have_value("Too short.")
    expect(reviewer.locator("html.js")).to_be_attached()  # its keys work
    press(reviewer, "x")
    expect(reviewer.get_by_label("Note to the author")).to_be_focused()
    reviewer.keyboard.type("Say why, please.")
    take_picture(reviewer, "demonstration-review-1440")
    press(reviewer, "Enter")
    expect(reviewer.get_by_role("heading", name="Demonstrations")).to_be_visible()

    writer.get_by_role("link", name="What I wrote").click()
    expect(writer.get_by_text("Say why, please.")).to_be_visible()
    writer.get_by_role("link", name="Revise and send again").click()
    expect(writer.locator("html.js")).to_be_attached()
    writer.get_by_label("Your answer").fill("Longer, because water is wet.")
    writer.reload()
    expect(writer.get_by_label("Your answer")).to_have_value("Longer, because water is wet.")
    press(writer, "Control+Enter")
    expect(writer.get_by_text("Sent for review again.")).to_be_visible()
    expect(writer.locator("html.js")).to_be_attached()  # the page's script has read that the draft arrived
    assert writer.evaluate("Object.keys(localStorage).filter((key) => key.includes('demonstration-')).length") == 0

    reviewer.goto(base(project) + "/review")
    expect(reviewer.get_by_text("Sent again after a review")).to_be_visible()
    press(reviewer, "e")
    press(reviewer, "End")
    reviewer.keyboard.type(" Always.")
    expect(reviewer.get_by_role("button", name="Approve with my edits")).to_be_visible()
    press(reviewer, "Escape")
    press(reviewer, "c")
    expect(reviewer.locator(".preview-changes .changed-added mark")).to_contain_text("Always")
    press(reviewer, "a")
    expect(reviewer.get_by_role("heading", name="Demonstrations")).to_be_visible()
    (row,) = demonstrations(session)
    assert (row.state, row.written, row.text) == (
        "approved",
        "Longer, because water is wet.",
        "Longer, because water is wet. Always.",
    )
    reviewer.get_by_role("link", name="Longer, because").click()
    expect(reviewer.get_by_role("heading", name="The reviewer's edit")).to_be_visible()


def test_a_draft_is_for_who_wrote_it(session: Session, open_page: OpenPage) -> None:
    """Two people at the same computer, one after the other; the prompt of the first comes to the second."""
    project = project_to_write_for(session, 1)
    ann, bob = factories.user(session, "labeler"), factories.user(session, "labeler")
    page = open_page(user=ann)
    page.goto(base(project) + "/write")
    page.get_by_label("Your answer").fill("Ann's thoughts")
    # Her page's request for a preview keeps the prompt hers: it must not come after the time has run out.
    expect(page.locator("#preview")).to_contain_text("Ann's thoughts")
    session.execute(update(DemonstrationTask).values(expires_at=datetime.now(UTC) - timedelta(minutes=1)))
    sign_in_instead(session, page, bob)
    page.goto(base(project) + "/write")
    expect(page.locator("[data-count]")).to_have_text("0 characters · 0 words")
    expect(page.get_by_label("Your answer")).to_have_value("")
    session.execute(update(DemonstrationTask).values(labeler_id=None, expires_at=None))
    sign_in_instead(session, page, ann)
    page.goto(base(project) + "/write")
    expect(page.get_by_label("Your answer")).to_have_value("Ann's thoughts")


def sign_in_instead(session: Session, page: Page, user: User) -> None:
    token = accounts.open_session(session, user, days=1)
    session.commit()
    [cookie] = [each for each in page.context.cookies() if each["name"] == SESSION_COOKIE]
    page.context.add_cookies([{"name": SESSION_COOKIE, "value": token, "domain": cookie["domain"], "path": "/"}])


def test_a_reviewers_edits_outlive_a_reload_and_end_with_the_decision(session: Session, open_page: OpenPage) -> None:
    project = factories.project(session)
    written = factories.demonstration(session, factories.prompt(session, project), "It is red.", state="pending")
    session.commit()
    page = open_page("admin")
    page.goto(f"{base(project)}/{written.id}")
    answer = page.get_by_label("The answer")
    answer.fill("It is blue.")
    page.reload()
    expect(answer).to_have_value("It is blue.")
    expect(page.get_by_text("This is your saved draft.")).to_be_visible()
    # To reject was begun; whoever edits instead means to keep it.
    press(page, "x")
    expect(page.get_by_role("button", name="Reject")).to_have_class(re.compile("chosen"))
    page.keyboard.type("No.")
    press(page, "Escape")
    press(page, "e")
    expect(page.get_by_role("button", name="Reject")).not_to_have_class(re.compile("chosen"))
    press(page, "Control+Enter")
    expect(page.get_by_role("heading", name="Demonstrations")).to_be_visible()
    [row] = demonstrations(session)
    assert (row.state, row.text) == ("approved", "It is blue.")
    page.goto(f"{base(project)}/{written.id}")
    expect(page.get_by_text("This is your saved draft.")).to_be_hidden()


def test_keys_without_control_can_be_switched_off_here_too(session: Session, open_page: OpenPage) -> None:
    page = open_page("labeler")
    page.goto(base(project_to_write_for(session, 1)) + "/write")
    expect(page.locator("html.js")).to_be_attached()
    press(page, "?")
    page.get_by_label("Use keys without").uncheck()
    press(page, "Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    page.reload()
    expect(page.locator("html.js")).to_be_attached()
    press(page, "r")
    press(page, "s")
    press(page, "?")
    expect(page.get_by_label("Use keys without")).not_to_be_checked()
    press(page, "Escape")
    expect(page.locator("#rubric[open], #skip[open]")).to_have_count(0)


@pytest.mark.parametrize("close", ["key", "Escape"])
def test_closing_with_a_key_keeps_the_focus(session: Session, open_page: OpenPage, close: str) -> None:
    page = open_page("labeler")
    page.goto(base(project_to_write_for(session, 1)) + "/write")
    expect(page.locator("html.js")).to_be_attached()
    for key, details, inside in (("r", "#rubric", "aside"), ("s", "#skip", "button")):
        press(page, key)
        page.locator(f"{details} {inside}").last.focus()
        press(page, key if close == "key" else close)
        expect(page.locator(f"{details} > summary")).to_be_focused()


def test_an_admin_sees_how_many_prompts_fit_before_asking(session: Session, open_page: OpenPage) -> None:
    project = factories.project(session)
    for n in range(5):
        factories.prompt(session, project, domain="law" if n < 2 else "sea", split="heldout" if n == 4 else "train")
    session.commit()
    page = open_page("admin")
    page.goto(base(project))
    page.get_by_role("link", name="Ask for more").click()
    expect(page.locator("#eligible b")).to_have_text("5")
    page.get_by_label("Domain").select_option("law")
    expect(page.locator("#eligible b")).to_have_text("2")
    page.get_by_label("Split").select_option("heldout")
    expect(page.locator("#eligible b")).to_have_text("0")
    page.get_by_label("Split").select_option("")
    page.get_by_label("Prompts", exact=True).fill("2")
    page.get_by_role("button", name="Ask labelers", exact=True).click()
    expect(page.get_by_text("2 prompts are now waiting for a labeler")).to_be_visible()
    expect(page.get_by_role("heading", name="Waiting to be written: 2")).to_be_visible()
    take_picture(page, "demonstrations-ask-1440")
    page.get_by_role("button", name="Withdraw", exact=False).last.click()
    expect(page.get_by_role("heading", name="Waiting to be written: 1")).to_be_visible()


def test_hostile_texts_never_run(session: Session, open_page: OpenPage) -> None:
    project = factories.project(session, name=HOSTILE)
    factories.rubric(session, project, guideline=HOSTILE)
    prompt = factories.prompt(session, project, HOSTILE)
    sample = factories.completion(session, prompt, HOSTILE + "x" * 3000)
    task(session, project, prompt=prompt, completion_id=sample.id)
    session.commit()
    page = open_page("labeler", "admin", width=390)
    page.goto(base(project) + "/write")
    editor = page.get_by_label("Your answer")
    editor.fill(HOSTILE + "\u202e</textarea><script>document.title=4</script>")
    expect(page.locator("#preview")).to_contain_text("document.title=4")
    page.locator("[data-pane][value=changes]").check()
    expect(page.locator(".changed-added")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    page.get_by_role("button", name="Send for review").click()
    expect(page.get_by_role("heading", name="No prompt needs")).to_be_visible()
    for path in ("", "/own", "/ask", "/review"):
        page.goto(base(project) + path)
        assert page.title() not in ("1", "2", "3", "4")
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), path


def test_without_javascript_everything_can_be_done(session: Session, open_page: OpenPage) -> None:
    project = project_to_write_for(session, 1, samples=True)
    page = open_page("labeler", "admin", javascript=False)
    page.goto(base(project) + "/write")
    page.get_by_label("Your answer").fill("By hand.")
    page.get_by_role("button", name="Send for review").click()
    expect(page.get_by_role("heading", name="No prompt needs a written answer")).to_be_visible()
    page.goto(base(project) + "/review")
    page.get_by_role("button", name="Approve").click()
    expect(page.get_by_role("heading", name="Demonstrations")).to_be_visible()
    assert [row.state for row in demonstrations(session)] == ["approved"]


@pytest.mark.parametrize(("width", "dark"), [(1440, False), (390, True)])
def test_pages_fit_their_screen(session: Session, open_page: OpenPage, width: int, dark: bool) -> None:
    name = f"{width}{'-dark' if dark else ''}"
    page = open_page("labeler", "admin", width=width, dark=dark)
    empty = factories.project(session, name="Empty")
    session.commit()
    for path in ("", "/write", "/own", "/ask"):
        page.goto(base(empty) + path)
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), path
        take_picture(page, f"demonstrations{path.replace('/', '-')}-none-{name}")

    project = project_to_write_for(session, 12, samples=True)
    authors = [factories.user(session, name=n) for n in ("Ann Arbor", "Bartholomäus von und zu Überlingen-Sipplingen")]
    for n in range(30):
        prompt = factories.prompt(
            session, project, f"Please explain {n} to me, step by step, as if I were five.", domain="science"
        )
        text = f"Think of {n} apples.\n\n1. Take **two**.\n2. Put them back.\n\n```python\nprint({n})\n```"
        state = ("pending", "approved", "rejected")[n % 3]
        factories.demonstration(
            session,
            prompt,
            text,
            state=state,
            author_id=authors[n % 2].id,
            review_note="Say what becomes of the other apples." if state == "rejected" else "",
        )
    session.commit()
    page.goto(base(project) + "/write")
    page.get_by_label("Your answer").fill("The sample says 0 and snow.\n\n- a list\n\n`code`")
    expect(page.locator("#preview li")).to_have_text("a list")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    take_picture(page, f"demonstrations-write-{name}")
    for path in ("", "/review", "/ask"):
        page.goto(base(project) + path)
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), path
        take_picture(page, f"demonstrations{path.replace('/', '-')}-many-{name}")
