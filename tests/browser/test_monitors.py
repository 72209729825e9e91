"""The monitors' pages in a browser: alarms, charts and the answers behind them, on a screen and on a phone."""

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect
from sqlalchemy.orm import Session

from app.domain.monitors import MONITORS
from app.models import Metric, Project, Run
from tests import factories
from tests.browser.pictures import take_picture

OpenPage = Callable[..., Page]


def add_round(session: Session, project: Project, number: int, stopped: bool = False) -> None:
    """A round of which every monitor has something to say; refusals grow from round to round."""
    config = {"algorithm": "rloo", "monitors": "stop" if stopped else "note"}
    round_ = factories.round_(session, project, number=number, algorithm="rloo", config=config)
    asked = "Write a friendly two-sentence reply to a customer whose parcel is late."
    example = {"asked": asked, "said": "Great question! It depends on many things. " * 4, "value": 1.0}
    alarm = {"monitor": "hedging", "step": 9, "before": 0.1, "new": 0.7, "low": 0.4, "high": 0.8}
    trained = {"alarms": [alarm | {"examples": [example] * 3}]} if stopped else {}
    session.add(Run(project_id=project.id, round_id=round_.id, kind="rloo", state="succeeded", spec={}, result=trained))
    kept = {name: [example] for name in ("beyond", "ceiling", "spread", "premises", "premises_reward")}
    run = Run(project_id=project.id, round_id=round_.id, kind="evaluate", state="succeeded", spec={})
    run.result = {"examples": kept}
    session.add(run)
    session.flush()
    figures = {monitor.figure for monitor in MONITORS}
    for slice_ in ("", "domain=safety", "domain=over_refusal"):
        values = {"eval_prompts": 20.0}
        for figure in figures:
            change = 0.3 if figure == "refusals" else 0.01
            before = 0.2 * number if figure == "refusals" else 0.4
            values |= {f"eval_before/{figure}": before, f"eval_{figure}": before + change}
            values |= {
                f"eval_difference/{figure}{end}": change + d for end, d in (("", 0), ("_low", -0.05), ("_high", 0.05))
            }
        session.add_all(Metric(run_id=run.id, name=n, slice=slice_, step=0, value=v) for n, v in values.items())
    session.commit()


@pytest.mark.parametrize(("width", "dark"), [(1440, False), (390, True)])
def test_an_alarm_leads_to_the_answers_behind_it(session: Session, open_page: OpenPage, width: int, dark: bool) -> None:
    project, operator = factories.project(session, name="Helpful answers"), factories.user(session, "operator")
    for number in (1, 2):
        add_round(session, project, number, stopped=number == 2)
    look = f"{width}{'-dark' if dark else ''}"
    page, base = open_page(user=operator, width=width, dark=dark), f"/projects/{project.slug}"

    def shown(name: str) -> None:
        take_picture(page, f"monitors-{name}-{look}")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")

    page.goto(f"{base}/rounds/2")
    shown("round")
    page.goto(f"{base}/monitors")
    shown("list")
    page.get_by_role("link", name="More hedging").first.click()
    expect(page.get_by_role("heading", name="While the policy of round 2 was trained")).to_be_visible()
    expect(page.locator("svg[aria-label='More hedging']")).to_be_visible()
    shown("page")
    page.goto(f"{base}/monitors/over_refusal")
    expect(page.locator("svg[aria-label='Refusals']")).to_be_visible()
    shown("refusals")
    page.goto(f"{base}/monitors/premises")
    shown("premises")
