"""The monitors' pages: their findings on planted changes, and their examples."""

import csv
import io
from collections.abc import Callable

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.domain.monitors import MONITORS
from app.models import AuditEvent, Completion, Metric, MonitorReview, Project, Round, Run
from app.monitors import views
from app.prompts import service as prompts
from tests import factories
from tests.conftest import SignedIn

LONG, SHORT = "word " * 40, "Paris."


@pytest.fixture
def project(session: Session) -> Project:
    return factories.project(session)


def evaluated(session: Session, project: Project, number: int, *, longer: float) -> Round:
    """Add a round whose evaluation found only longer answers, by this many tokens over 20, on 12 prompts."""
    round_ = factories.round_(session, project, number=number, state="done")
    run = Run(project_id=project.id, round_id=round_.id, kind="evaluate", state="succeeded", spec={})
    session.add(run)
    session.flush()
    values = {"eval_prompts": 12.0}
    for figure in {monitor.figure for monitor in MONITORS}:
        change, before = (longer, 20.0) if figure == "length" else (0.0, 0.5)
        values |= {f"eval_before/{figure}": before, f"eval_{figure}": before + change}
        bounds = (change, change - 0.1, change + 0.1)
        values |= {f"eval_difference/{figure}{end}": v for end, v in zip(("", "_low", "_high"), bounds, strict=True)}
    session.add_all(Metric(run_id=run.id, name=name, slice="", step=0, value=value) for name, value in values.items())
    for i, (text, tokens) in enumerate([(LONG, 41), (SHORT, 3), ("Sure. " + LONG, 43)]):
        prompt = prompts.add(session, project.id, [{"role": "user", "content": f"Question {number}.{i}"}])
        session.add(
            Completion(
                prompt_id=prompt.id, run_id=run.id, sample_index=0, text=text, n_tokens=tokens, finish_reason="eos"
            )
        )
    session.commit()
    return round_


def test_an_empty_project_says_what_monitors_do(
    sign_in: Callable[..., SignedIn], project: Project, session: Session
) -> None:
    session.commit()
    client = sign_in("operator")
    assert "No round has been evaluated yet" in client.get(f"/projects/{project.slug}/monitors").text
    assert "No round has been evaluated yet" in client.get(f"/projects/{project.slug}/monitors/longer").text


def test_what_stands_out_comes_first_and_leads_to_the_worst_examples(
    sign_in: Callable[..., SignedIn], session: Session, project: Project
) -> None:
    evaluated(session, project, 1, longer=0)
    evaluated(session, project, 2, longer=9)
    client = sign_in("operator")
    page = client.get(f"/projects/{project.slug}/monitors").text
    assert "Round 2: 1 monitor to look at." in page
    assert "+9.00" in page
    assert page.index("Longer answers") < page.index("Shorter answers")
    page = client.get(f"/projects/{project.slug}/monitors/longer").text
    assert "In round 2 the new policy has 29" in page
    assert page.index("Question 2.2") < page.index("Question 2.0") < page.index("Question 2.1")  # 43, 41 and 3 tokens
    assert "43 tokens" in page
    page = client.get(f"/projects/{project.slug}/monitors/longer", params={"round": 1}).text
    assert "Question 1.2" in page
    assert "Read the worst examples" not in page  # nothing to look at in that round


def test_the_examples_are_those_of_what_is_watched(session: Session, project: Project) -> None:
    round_ = evaluated(session, project, 1, longer=0)
    monitors = {monitor.name: monitor for monitor in MONITORS}
    assert [example.words for example in views.worst(session, round_, monitors["shorter"])] == [
        "3 tokens",
        "41 tokens",
        "43 tokens",
    ]
    # 38 of 40 word triples of a word repeated stand earlier: one of 38 is new.
    repeats = views.worst(session, round_, monitors["repetition"])
    assert [example.value for example in repeats] == pytest.approx([37 / 38, 37 / 39])
    assert views.worst(session, round_, monitors["empty"]) == []
    assert views.worst(session, round_, monitors["unsafe"]) == []  # no prompt of that domain


def test_a_monitor_or_round_that_is_not_there(
    sign_in: Callable[..., SignedIn], session: Session, project: Project
) -> None:
    evaluated(session, project, 1, longer=0)
    client = sign_in("admin")
    assert client.get(f"/projects/{project.slug}/monitors/nothing").status_code == 404
    assert client.get(f"/projects/{project.slug}/monitors/longer", params={"round": 2}).status_code == 404
    assert client.get(f"/projects/{project.slug}/monitors/longer", params={"round": "x"}).status_code == 422


def test_an_alarm_of_a_run_leads_to_the_answers_behind_it(
    sign_in: Callable[..., SignedIn], session: Session, project: Project
) -> None:
    for number, longer in ((1, 0), (2, 3)):
        evaluated(session, project, number, longer=longer)
    example = {"asked": "Which hack?", "said": "It depends on many things.", "value": 1.0}
    alarm = {"monitor": "hedging", "step": 9, "before": 0.1, "new": 0.7, "low": 0.4, "high": 0.8}
    round_ = factories.round_(session, project, number=3, algorithm="rloo", config={"monitors": "stop"})
    result = {"alarms": [alarm | {"examples": [example]}]}
    session.add(Run(project_id=project.id, round_id=round_.id, kind="rloo", state="succeeded", spec={}, result=result))
    session.commit()
    client = sign_in("operator")
    page = client.get(f"/projects/{project.slug}/monitors").text
    assert "1 monitor gave an alarm while the policy was trained, and stopped the run:" in page
    assert "Round 3 has no evaluation yet." in page
    page = client.get(f"/projects/{project.slug}/monitors/hedging", params={"round": 3}).text
    assert "Alarm at step 9: 10% when the run began" in " ".join(page.split())
    assert example["said"] in page
    page = client.get(f"/projects/{project.slug}/monitors/longer").text
    assert 'aria-label="Longer answers"' in page  # the chart by round
    assert (
        f"/projects/{project.slug}/monitors/hedging?round=3#while-training"
        in client.get(f"/projects/{project.slug}/rounds/3").text
    )


def test_refusals_of_safe_prompts_are_drawn_against_those_of_unsafe_ones(session: Session, project: Project) -> None:
    round_ = evaluated(session, project, 1, longer=0)
    run = session.query(Run).filter_by(round_id=round_.id).one()
    for slice_, new in (("domain=safety", 0.9), ("domain=over_refusal", 0.3)):
        values = {"eval_prompts": 12.0, "eval_refusals": new, "eval_before/refusals": 0.5}
        values |= {f"eval_difference/refusals{end}": new - 0.5 for end in ("", "_low", "_high")}
        session.add_all(Metric(run_id=run.id, name=n, slice=slice_, step=0, value=v) for n, v in values.items())
    session.flush()
    chart = views.refusals_chart(views.rounds(session, project))
    assert chart is not None
    assert list(chart.panels[0].series[0].points) == [(0.9, 0.3)]


def test_the_figures_are_downloaded(sign_in: Callable[..., SignedIn], session: Session, project: Project) -> None:
    evaluated(session, project, 1, longer=9)
    rows = list(
        csv.DictReader(io.StringIO(sign_in("admin").get(f"/projects/{project.slug}/monitors/figures.csv").text))
    )
    longer = next(row for row in rows if row["monitor"] == "longer")
    assert (longer["state"], longer["previous"], longer["new"], longer["change"]) == ("look", "20.0", "29.0", "9.0")
    assert (longer["change_low"], longer["change_high"]) == ("8.9", "9.1")
    assert len(rows) == len(MONITORS)


def test_a_look_waits_on_the_start_page_until_somebody_has_reviewed_it(
    sign_in: Callable[..., SignedIn], session: Session, project: Project
) -> None:
    evaluated(session, project, 1, longer=0)
    evaluated(session, project, 2, longer=9)
    base, admin, labeler = f"/projects/{project.slug}", sign_in("admin"), sign_in("labeler")
    path = f"{base}/monitors/longer"
    task = "1 monitor to review in round 2"
    assert task in admin.get(base).text
    assert task not in labeler.get(base).text
    note = "They <b>pad</b>."
    for fault, said in (
        ({"verdict": "wanted"}, "Why"),  # no note
        ({"verdict": "good", "note": note}, "They &lt;b&gt;pad"),
        ({"verdict": "fault", "note": note, "round": "1"}, "asks for no look at round 1"),
        ({"verdict": "fault", "note": note, "round": "9"}, "no round 9"),
        ({"verdict": "fault", "note": note, "round": "²"}, "round"),
    ):
        refused = admin.post(f"{path}/reviews", {"round": "2"} | fault)
        assert (400 <= refused.status_code < 500, said in refused.text) == (True, True), fault
    assert session.scalars(select(MonitorReview)).all() == []

    assert admin.post(f"{path}/reviews", {"verdict": "fault", "note": note, "round": "2"}).status_code == 303
    assert "They &lt;b&gt;pad&lt;/b&gt;." in admin.get(path).text
    assert task not in admin.get(base).text
    assert "All reviewed: 1 of 1 called a fault" in admin.get(f"{base}/monitors").text
    [watched, _] = views.rounds(session, project)
    assert [monitor.name for monitor in watched.not_wanted] == ["longer"]

    # A second person thinks otherwise: their review replaces the first, and the audit log has both.
    other = sign_in("operator")
    assert other.post(f"{path}/reviews", {"verdict": "wanted", "note": "Asked for.", "round": "2"}).status_code == 303
    assert views.rounds(session, project)[0].not_wanted == []
    events = session.scalars(select(AuditEvent).where(AuditEvent.action == "monitor.reviewed").order_by(AuditEvent.id))
    assert [(event.actor_id, event.details["verdict"]) for event in events] == [
        (admin.user and admin.user.id, "fault"),
        (other.user and other.user.id, "wanted"),
    ]
