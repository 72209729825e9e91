"""An admin decides how judgments are made, and who gets which comparisons, in the browser."""

import json
import os
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Page, expect
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.models import Comparison
from tests import factories

OpenPage = Callable[..., Page]


def look(page: Page, name: str) -> None:
    """Keeps a picture where one is asked for."""
    if folder := os.environ.get("PREFLOOP_PICTURES"):
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def test_labeling_settings_are_changed_and_refused_in_words(open_page: OpenPage, session: Session) -> None:
    project = factories.project(session, slug="p", name="Law")
    session.commit()
    page = open_page("admin")
    page.goto("/projects/p/settings")
    look(page, "settings")
    page.get_by_label("Adapt the overlap to the answers").check()
    page.get_by_label("Judgments at most").fill("4")
    page.get_by_role("group", name="Calibration").get_by_label("Share of tasks, %").fill("10")
    rule = page.get_by_role("group", name="Overlap rule 1")
    rule.get_by_label("Slice or purpose").select_option("purpose")
    rule.get_by_label("Value").fill("heldout")
    rule.get_by_label("Judgments wanted").fill("5")
    page.get_by_label("Method").select_option("dawid_skene")
    page.get_by_role("button", name="Save how judgments are made").click()
    expect(page.get_by_role("group", name="Overlap rule 2")).to_be_visible()
    expect(page.get_by_role("group", name="Overlap rule 1").get_by_label("Value")).to_have_value("heldout")
    session.refresh(project)
    assert project.labeling["adaptive"] == {"at_least": 1, "at_most": 4, "sure": 0.9}
    assert project.labeling["consensus"] == "dawid_skene"

    page.get_by_label("Judgments at first").fill("9")
    page.get_by_role("button", name="Save how judgments are made").click()
    expect(page.get_by_role("alert").filter(has_text="the least overlap is above the cap")).to_be_visible()
    expect(page.get_by_label("Judgments at first")).to_have_value("9")
    look(page, "settings-refused")
    phone = open_page("admin", width=390, dark=True)
    phone.goto("/projects/p/settings")
    look(phone, "settings-phone")
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390


def test_comparisons_are_kept_for_somebody_and_freed(open_page: OpenPage, session: Session) -> None:
    project, labeler = factories.project(session, slug="p", overlap=3), factories.user(session, name="Grace")
    for domain in ("law", "law", "maths"):
        factories.comparison(session, project, prompt=factories.prompt(session, project, domain=domain))
    session.commit()
    page = open_page("admin")
    page.goto("/projects/p")
    page.get_by_role("link", name="Assignment").click()
    page.get_by_label("Slice", exact=True).select_option("domain")
    page.get_by_label("Value of the slice").fill("law")
    page.get_by_label("Reserve for").select_option(label="Grace")
    page.get_by_role("button", name="Assign").click()
    expect(page.get_by_role("status")).to_have_text("2 comparisons changed.")
    expect(page.get_by_role("row", name="Grace")).to_contain_text("2")
    look(page, "assignment")
    kept = select(Comparison).where(Comparison.labeler_id == labeler.id)
    assert len(session.scalars(kept).all()) == 2

    page.get_by_label("Reserved now").select_option("kept")
    page.get_by_label("Reserve for").select_option("everybody")
    page.get_by_label("Priority").fill("3")
    page.get_by_role("button", name="Assign").click()
    expect(page.get_by_role("row", name="Grace")).to_have_count(0)
    session.expire_all()
    assert session.scalars(kept).all() == []
    expect(page.get_by_text("By priority")).to_contain_text("3: 2, 0: 1")
    phone = open_page("admin", width=390)
    phone.goto("/projects/p/assignment")
    look(phone, "assignment-phone")
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390


def test_an_import_is_previewed_carried_out_and_undone(open_page: OpenPage, session: Session, tmp_path: Path) -> None:
    project = factories.project(session, slug="p", name="Law")
    factories.rubric(session, project)
    session.commit()
    file = tmp_path / "pairs.jsonl"
    good, bad = ({"prompt": text, "chosen": "  Rye.", "rejected": "Mud."} for text in ("Why?", ""))
    file.write_text(f"{json.dumps(good)}\n{json.dumps(bad)}\n")
    phone = open_page("admin", width=390, dark=True)
    phone.goto("/projects/p/data")
    phone.get_by_label("Files").set_input_files(file)
    phone.get_by_role("button", name="Preview import").press("Enter")
    shown = phone.get_by_role("region", name="Preview: nothing is written yet")
    expect(shown.get_by_text("1 line is refused")).to_be_visible()
    expect(phone.get_by_role("button", name="Import", exact=True)).to_have_count(0)
    look(phone, "import-refused-phone")
    phone.get_by_label("Skip invalid lines and list them").check()
    phone.get_by_role("button", name="Preview import").click()
    expect(shown.get_by_text("New: 1 prompt, 1 comparison, 1 judgment")).to_be_visible()
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390
    look(phone, "import-preview-phone")
    assert session.scalars(select(Comparison)).all() == []
    phone.get_by_role("button", name="Import", exact=True).click()
    expect(phone.get_by_text("Imported: 1 prompt, 1 comparison")).to_be_visible()
    assert phone.locator("#imports td.files").evaluate("cell => cell.clientWidth") >= 150  # not a letter a line
    cards = phone.evaluate(
        "[...document.querySelectorAll('.columns, #imports')].map(each => each.getBoundingClientRect())"
    )
    assert cards[1]["top"] > cards[0]["bottom"]
    phone.get_by_role("button", name="Undo import").click()
    expect(phone.get_by_text("was undone.")).to_be_visible()
    expect(phone.get_by_role("button", name="Undo import")).to_have_count(0)
    look(phone, "import-undone-phone")
    session.rollback()
    assert session.scalars(select(Comparison.state)).all() == ["withdrawn"]
