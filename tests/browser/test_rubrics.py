"""Editing, previewing, publishing and comparing rubrics, as an admin does it."""

import re
from collections.abc import Callable

from playwright.sync_api import Dialog, Locator, Page, Route, expect
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.models import Project, Rubric
from tests import factories
from tests.browser.keys import press

OpenPage = Callable[..., Page]


def project_with_rubric(session: Session, **values: object) -> Project:
    project = factories.project(session)
    factories.rubric(session, project, **({"guideline": "The first one."} | values))
    session.commit()
    return project


def open_editor(page: Page, project: Project) -> Locator:
    """Opens the editor; returns the preview."""
    page.goto(f"/projects/{project.slug}/rubric")
    return page.locator("#preview")


def newest(session: Session) -> Rubric:
    session.rollback()
    session.expire_all()
    return session.scalars(select(Rubric).order_by(Rubric.id.desc())).first() or Rubric()


def fits(page: Page) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


def test_edit_preview_and_publish(session: Session, open_page: OpenPage) -> None:
    project = project_with_rubric(session)
    factories.comparison(session, project)
    session.commit()
    page = open_page("admin")
    preview = open_editor(page, project)
    expect(preview).to_contain_text("The first one.")

    page.get_by_label("Guideline", exact=True).fill("Prefer what is **shorter**. <img src=x onerror=alert(1)>")
    expect(preview.locator("strong")).to_have_text("shorter")
    steps = preview.locator(".scale input[type=radio]")
    page.get_by_label("Strengths each way").select_option("1")
    expect(steps).to_have_count(3)
    page.get_by_label("A tie is allowed").uncheck()
    expect(steps).to_have_count(2)
    page.get_by_label("“Both bad” is allowed").uncheck()
    expect(preview.get_by_text("Both bad")).to_have_count(0)
    expect(preview.get_by_text("Cannot judge")).to_have_count(1)
    page.locator("#rationale_rule").select_option("required")
    expect(preview.locator("textarea[required]")).to_have_count(1)
    assert page.evaluate("document.querySelectorAll('#preview img').length") == 0

    page.get_by_role("button", name="Save draft").click()
    expect(page.locator(".badge").filter(has_text="draft")).to_be_visible()
    session.rollback()
    assert session.scalars(select(Rubric.version).order_by(Rubric.id)).all() == [1, None]

    expect(page.locator(".publishing")).to_contain_text("1 open comparison that nobody has begun moves")
    page.get_by_role("button", name="Publish as version 2").click()
    expect(page.get_by_role("heading", name="Rubric version 2")).to_be_visible()
    expect(page.get_by_text("in force")).to_be_visible()
    page.get_by_role("link", name="What changed since version 1").click()
    expect(page.locator("ins, del").first).to_be_visible()
    page.get_by_role("link", name="Editor and all versions").click()
    expect(page.get_by_role("row").nth(1)).to_contain_text("Binary")
    expect(page.get_by_role("button", name="Discard draft")).to_have_count(0)

    labeler = open_page("labeler")
    labeler.goto(f"/projects/{project.slug}/label")
    expect(labeler.locator(".scale input[type=radio]")).to_have_count(2)
    expect(labeler.get_by_text("Rubric v2")).to_be_visible()


def test_a_scale_is_chosen_by_its_name(session: Session, open_page: OpenPage) -> None:
    page = open_page("admin")
    preview = open_editor(page, project_with_rubric(session))
    expect(page.get_by_role("button", name="7 points")).to_have_attribute("aria-pressed", "true")
    page.get_by_role("button", name="4 levels each way").click()
    expect(page.get_by_role("button", name="4 levels each way")).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_role("button", name="4 levels each way")).to_be_focused()
    expect(preview.locator(".scale input[type=radio]")).to_have_count(8)
    expect(preview.get_by_label("Second response far better")).to_have_count(1)
    page.get_by_label("A tie is allowed").check()
    expect(preview.locator(".scale input[type=radio]")).to_have_count(9)


def test_rows_by_keyboard_alone(session: Session, open_page: OpenPage) -> None:
    """Add, fill, move, remove and put back: the focus is always where one goes on, and other fields keep their text."""
    page = open_page("admin")
    aspects = [{"name": "style", "question": "Which is better written?"}]
    preview = open_editor(page, project_with_rubric(session, aspects=aspects))
    section = page.locator("#section-aspects")
    page.get_by_label("Guideline", exact=True).fill("Typed, not saved.")

    page.get_by_role("button", name="Add an aspect").press("Enter")
    expect(section.get_by_label("Name").nth(1)).to_be_focused()
    page.keyboard.type("Safety")
    press(page, "Tab")
    page.keyboard.type("Which is safer?")
    expect(preview.get_by_text("Which is safer?")).to_be_visible()
    section.get_by_role("button", name="Move aspect 2 up").press("Enter")
    expect(section.get_by_role("button", name="Move aspect 1 down")).to_be_focused()
    expect(section.get_by_label("Name").first).to_have_value("Safety")
    section.get_by_role("button", name="Remove aspect 1").press("Enter")
    expect(section.get_by_role("button", name="Put it back")).to_be_focused()
    expect(section.get_by_label("Name")).to_have_count(1)
    expect(preview.get_by_text("Which is safer?")).to_have_count(0)
    press(page, "Enter")
    expect(section.get_by_label("Question").first).to_have_value("Which is safer?")
    expect(page.get_by_label("Guideline", exact=True)).to_have_value("Typed, not saved.")

    section.get_by_label("Name").first.press("Enter")  # in a field: saves
    expect(page.locator(".badge").filter(has_text="draft")).to_be_visible()
    draft = newest(session)
    assert draft.guideline == "Typed, not saved.\n"
    assert [aspect["name"] for aspect in draft.aspects] == ["safety", "style"]
    page.get_by_label("Guideline", exact=True).press_sequentially("More. ")
    press(page, "Control+Enter")
    expect(page.locator("input[name=revision]")).to_have_value("2")


def test_examples_and_quiz(session: Session, open_page: OpenPage) -> None:
    project = project_with_rubric(session)
    page = open_page("admin")
    preview = open_editor(page, project)
    page.get_by_role("button", name="Add an example").click()
    example = page.get_by_role("group", name="Example 1")
    for label, words in (("Prompt", "2 + 2?"), ("Better response", "4"), ("Worse response", "5"), ("Why", "Right.")):
        example.get_by_label(label).fill(words)
    expect(preview.get_by_text("Worked examples")).to_be_visible()
    page.get_by_role("button", name="Add a question").click()
    question = page.get_by_role("group", name="Question 1", exact=True)
    question.get_by_label("Prompt").fill("Capital of France?")
    question.get_by_label("First response").fill("Paris")
    question.get_by_label("Second response").fill("Rome")
    expect(preview.get_by_text("Question 1: the right answer is not chosen.")).to_be_visible()
    page.get_by_role("button", name="Publish as version 2").click()

    # Refused, with every word still there and links to what is missing.
    page.get_by_role("link", name="Question 1: the explanation is empty").click()
    expect(question.get_by_label("Explanation")).to_be_in_viewport()
    expect(question.get_by_label("Explanation")).to_have_attribute("aria-invalid", "true")
    expect(example.get_by_label("Worse response")).to_have_value("5")
    question.get_by_label("Right answer").select_option(label="First is better")
    question.get_by_label("Explanation").fill("It is Paris.")
    expect(preview.get_by_text("Not complete yet")).to_have_count(0)
    page.get_by_role("button", name="Publish as version 2").click()
    expect(page.get_by_role("heading", name="Rubric version 2")).to_be_visible()
    rubric = newest(session)
    assert rubric.examples == [{"prompt": "2 + 2?", "better": "4", "worse": "5", "reason": "Right."}]
    assert [(item["prompt"], item["answer"]) for item in rubric.quiz] == [("Capital of France?", -1)]
    page.get_by_role("navigation", name="About this version").get_by_role("link", name="Quiz results").click()
    expect(page.get_by_text("Nobody has taken the quiz yet")).to_be_visible()


def test_a_half_written_example_is_kept_in_the_draft(session: Session, open_page: OpenPage) -> None:
    project = project_with_rubric(session)
    page = open_page("admin")
    preview = open_editor(page, project)
    page.get_by_role("button", name="Add an example").click()
    example = page.get_by_role("group", name="Example 1")
    example.get_by_label("Prompt").fill("2 + 2?")
    page.get_by_role("button", name="Save draft").click()
    expect(page.locator(".badge").filter(has_text="draft")).to_be_visible()
    expect(example.get_by_label("Prompt")).to_have_value("2 + 2?")
    expect(preview.get_by_text("Example 1: the better response is empty.")).to_be_visible()
    page.get_by_role("button", name="Publish as version 2").click()
    expect(page.get_by_role("link", name="Example 1: the reason is empty")).to_be_visible()
    assert newest(session).version is None


def test_saving_while_a_section_is_on_its_way_loses_no_row(session: Session, open_page: OpenPage) -> None:
    page = open_page("admin")
    aspects = [{"name": name, "question": f"Which has more {name}?"} for name in ("style", "wit")]
    preview = open_editor(page, project_with_rubric(session, aspects=aspects))
    held: list[Route] = []
    page.route("**/rubric/edit", lambda route: held.append(route))
    with page.expect_request("**/rubric/edit"):
        page.get_by_role("button", name="Remove aspect 2").click()
    expect(page.locator("#section-aspects[inert]")).to_have_count(1)
    page.get_by_role("button", name="Save draft").click()
    held[0].continue_()
    expect(page.locator(".badge").filter(has_text="draft")).to_be_visible()
    assert [aspect["name"] for aspect in newest(session).aspects] == ["style"]
    page.wait_for_load_state()  # until its scripts run, a section's button sends the whole form

    # And where nothing comes back, all is as it was.
    page.unroute("**/rubric/edit")
    page.route("**/rubric/edit", lambda route: route.abort())
    page.get_by_role("button", name="Add an aspect").click()
    expect(page.get_by_text("The service does not answer")).to_be_visible()
    expect(page.get_by_role("button", name="Add an aspect")).to_be_focused()
    expect(preview.get_by_text("Which has more style?")).to_be_visible()


def test_a_late_preview_does_not_show_what_was_removed(session: Session, open_page: OpenPage) -> None:
    page = open_page("admin")
    aspects = [{"name": name, "question": f"Which has more {name}?"} for name in ("style", "wit")]
    preview = open_editor(page, project_with_rubric(session, aspects=aspects))
    page.get_by_label("Guideline", exact=True).press_sequentially("Or not. ")
    expect(preview.get_by_text("Or not.")).to_be_visible()
    previews: list[Route] = []
    edits: list[Route] = []
    page.route("**/rubric/preview", lambda route: previews.append(route))
    page.route("**/rubric/edit", lambda route: edits.append(route))
    with page.expect_request("**/rubric/preview"):  # leaving the text, it is looked at once more
        page.get_by_role("button", name="Remove aspect 2").click()
    with page.expect_event("requestfailed", lambda request: request == previews[0].request):  # not waited for any more
        edits[0].continue_()
    expect(page.get_by_role("button", name="Put it back")).to_be_focused()
    page.unroute("**/rubric/preview")
    previews[-1].continue_()
    expect(preview.get_by_text("Which has more wit?")).to_have_count(0)
    expect(preview.get_by_text("Which has more style?")).to_be_visible()


def test_a_draft_is_not_thrown_away_by_one_click(session: Session, open_page: OpenPage) -> None:
    page = open_page("admin")
    project = project_with_rubric(session)
    open_editor(page, project)
    page.get_by_label("Guideline", exact=True).fill("A long text.")
    page.get_by_role("button", name="Save draft").click()
    expect(page.locator(".badge").filter(has_text="draft")).to_be_visible()
    answers = [False, True]
    asked: list[str] = []

    def answer(dialog: Dialog) -> None:
        asked.append(dialog.message)
        (dialog.accept if answers[len(asked) - 1] else dialog.dismiss)()

    page.on("dialog", answer)
    page.get_by_role("button", name="Discard draft").click()
    expect(page.get_by_label("Guideline", exact=True)).to_have_value("A long text.\n")
    assert newest(session).guideline == "A long text.\n"
    page.get_by_role("button", name="Discard draft").click()
    expect(page.get_by_text("No draft.")).to_be_visible()
    assert asked == ["Throw this draft away, and what you typed since?"] * 2


def test_two_admins_and_one_draft(session: Session, open_page: OpenPage) -> None:
    project = project_with_rubric(session)
    ann = open_page(user=factories.user(session, "admin", name="Ann"))
    bob = open_page(user=factories.user(session, "admin", name="Bob"))
    for page in (ann, bob):
        open_editor(page, project)
    for name, page in (("Ann", ann), ("Bob", bob)):
        page.get_by_label("Guideline", exact=True).fill(f"It is what {name} thinks.")
        page.get_by_role("button", name="Save draft").click()
    expect(ann.locator(".badge").filter(has_text="draft")).to_be_visible()
    expect(bob.get_by_role("alert").filter(has_text="Ann changed this draft")).to_be_visible()
    expect(bob.get_by_label("Guideline", exact=True)).to_have_value("It is what Bob thinks.")
    expect(bob.locator("#theirs del")).to_have_text("Ann")
    expect(bob.locator("#theirs ins")).to_have_text("Bob")
    bob.get_by_role("button", name="Save draft").click()
    expect(bob.get_by_text("edited by Bob")).to_be_visible()


def test_leaving_with_unsaved_changes_asks_first(session: Session, open_page: OpenPage) -> None:
    project = project_with_rubric(session)
    page = open_page("admin")
    open_editor(page, project)
    asked: list[str] = []
    page.on("dialog", lambda dialog: (asked.append(dialog.type), dialog.accept()))
    page.get_by_role("link", name="Prompts").click()
    page.wait_for_url("**/prompts")
    assert asked == []
    open_editor(page, project)
    page.get_by_label("Guideline", exact=True).press_sequentially("More. ")
    page.get_by_role("link", name="Prompts").click()
    page.wait_for_url("**/prompts")
    assert asked == ["beforeunload"]


def test_without_javascript_and_on_a_phone(session: Session, open_page: OpenPage) -> None:
    guideline = "word" * 200 + "\n\n# Heading\n\n" + "text " * 2000
    project = project_with_rubric(session, guideline=guideline, aspects=[{"name": "style", "question": "Which?"}])
    page = open_page("admin", width=390, javascript=False)
    open_editor(page, project)
    assert fits(page)
    page.get_by_label("Guideline", exact=True).fill("Plain *words*.")
    page.get_by_role("button", name="Add a flag").click()
    page.locator("#section-flags").get_by_label("Name").fill("harmful")
    page.locator("#section-flags").get_by_label("Label").fill("Harmful")
    page.get_by_role("button", name="Remove aspect 1").click()
    expect(page.get_by_label("Guideline", exact=True)).to_have_value("Plain *words*.")
    page.get_by_role("button", name="Put it back").click()
    expect(page.locator("#section-aspects").get_by_label("Question")).to_have_value("Which?")
    expect(page.locator("#preview em")).to_have_text("words")
    page.get_by_role("button", name="Save draft").click()
    # Only the page that comes after it: all else is on the one before, too.
    expect(page.locator(".badge").filter(has_text="draft")).to_be_visible()
    assert newest(session).flags == [{"name": "harmful", "label": "Harmful"}]
    page.get_by_role("button", name="Discard draft").click()
    expect(page.get_by_text("No draft.")).to_be_visible()


HOSTILE = "</textarea><script>alert(1)</script>‮backwards" + "x" * 200


def test_far_too_much_never_breaks_the_layout(session: Session, open_page: OpenPage) -> None:
    project = project_with_rubric(
        session,
        guideline=f"{HOSTILE}\n\n| a | b |\n|---|---|\n| {'c' * 500} | d |",
        aspects=[{"name": f"{'a' * 38}{n:02}", "question": HOSTILE[:300]} for n in range(12)],
        flags=[{"name": f"{'f' * 38}{n:02}", "label": HOSTILE[:300]} for n in range(12)],
        examples=[{"prompt": HOSTILE, "better": HOSTILE, "worse": HOSTILE, "reason": HOSTILE}] * 10,
        quiz=[{"prompt": HOSTILE, "first": HOSTILE, "second": HOSTILE, "answer": 1, "feedback": HOSTILE}] * 20,
    )
    session.add(
        Rubric(project_id=project.id, guideline=HOSTILE[::-1], aspects=[{"name": "one", "question": HOSTILE[:250]}])
    )
    session.commit()
    admin = factories.user(session, "admin", name=HOSTILE[:200])
    session.commit()
    for width, dark in ((1440, False), (390, True)):
        page = open_page(user=admin, width=width, dark=dark)
        for path in ("", "/1", "/diff?was=1&now=draft"):
            page.goto(f"/projects/{project.slug}/rubric{path}")
            expect(page.get_by_role("heading", name=re.compile("Rubric|From version"), level=1)).to_be_visible()
            assert fits(page), f"{path or 'the editor'} at {width} px"
