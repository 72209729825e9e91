"""Runs of judges: a real worker asks a real process. What it stores, what it does not ask again, and its errors."""

import signal
import socket
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine, func, select, text
from sqlalchemy.orm import Session

from app.db import make_session_factory
from app.errors import Conflict
from app.judges import service
from app.judges.forms import RunForm
from app.models import Judge, JudgeJudgment, Judgment, Run
from app.queue import enqueue_run
from app.rounds import service as rounds
from app.settings import Settings
from tests import factories
from tests.conftest import SignedIn
from tests.judges.scenes import comparisons, judge, truth
from tests.waiting import wait_for
from trainer.service.worker import Worker, recover, work_until_empty

SignIn = Callable[..., SignedIn]
OPEN = RunForm(what=["open"], most=100)


def work(settings: Settings) -> None:
    work_until_empty(settings, settings.database_url or "")


def started(session: Session, judge: Judge, form: RunForm | None = OPEN) -> Run:
    operator = factories.user(session, "operator")
    run = service.start(session, judge, operator, form) if form else service.start_test(session, judge, operator)
    session.commit()
    return run


def run(session: Session, settings: Settings, judge: Judge, form: RunForm | None = OPEN) -> Run:
    found = started(session, judge, form)
    work(settings)
    session.refresh(found)
    return found


def rows(session: Session) -> list[JudgeJudgment]:
    session.expire_all()
    return list(session.scalars(select(JudgeJudgment).order_by(JudgeJudgment.comparison_id)))


def asked(endpoint: str, model: str) -> list[dict[str, Any]]:
    return [each for each in httpx.get(f"{endpoint}/asked").json() if each["model"] == model]


def test_both_orders_cost_and_nothing_among_peoples(session: Session, settings: Settings, endpoint: str) -> None:
    project = factories.project(session)
    factories.rubric(session, project, guideline="Prefer what is better.")
    one = judge(session, project, endpoint, "good", prompt_price=2.0, completion_price=10.0, concurrency=2)
    made = comparisons(session, project, 6)
    done = run(session, settings, one)
    assert (done.state, done.result, done.error) == ("succeeded", {"judged": 6, "failed": 0, "before": 0}, None)
    found = {row.comparison_id: row for row in rows(session)}
    for number, each in enumerate(made):
        row = found[each.id]
        side = truth(each, number)
        assert (row.verdict, row.error) == (side, None)
        # Where neither is better it chose what stood first, and so contradicted itself.
        assert (row.first, row.second) == ((-1, 1) if side == 0 else (side, side))
        assert (row.prompt_tokens, row.completion_tokens) == (200, 20)
        assert row.cost == pytest.approx((200 * 2 + 20 * 10) / 1e6)
        assert (row.served_model, row.said[0]) == ("served-good", f"Because it is.\nVerdict: {2 if side == 1 else 1}")
    sent = asked(endpoint, "good")
    assert len(sent) == 12
    assert all("Prefer what is better." in each["messages"][0]["content"] for each in sent)
    assert session.scalar(select(func.count()).select_from(Judgment)) == 0
    for each in made:
        session.refresh(each)
        assert (each.state, each.judgment_count) == ("open", 0)
    with pytest.raises(Conflict, match="judged all of them already"):
        service.start(session, one, factories.user(session, "operator"), OPEN)


def test_a_killed_run_goes_on_and_asks_nothing_twice(
    session: Session, settings: Settings, endpoint: str, run_worker: Callable[..., ForkServerProcess]
) -> None:
    project = factories.project(session)
    factories.rubric(session, project)
    one = judge(session, project, endpoint, "slow", concurrency=1)
    comparisons(session, project, 12)
    found = started(session, one)
    first = run_worker()
    wait_for(lambda: len(rows(session)) >= 2, "the first judgments")
    first.kill()
    first.join()
    assert first.exitcode == -signal.SIGKILL
    kept = {row.id: row.created_at for row in rows(session)}
    assert 2 <= len(kept) < 12
    # As if it had been silent for as long as a dead worker is.
    session.execute(text("UPDATE procrastinate_workers SET last_heartbeat = now() - interval '1 hour'"))
    assert recover(session) == [found.id]
    session.commit()
    work(settings)
    session.refresh(found)
    assert (found.state, found.error) == ("succeeded", None)
    after = {row.id: row.created_at for row in rows(session)}
    assert len(after) == 12
    assert {id_: after[id_] for id_ in kept} == kept
    # Only what was under way when it was killed is asked again.
    assert 24 <= len(asked(endpoint, "slow")) <= 26


def test_a_training_run_does_not_hold_judging_up(
    session: Session, settings: Settings, engine: Engine, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = factories.project(session)
    factories.rubric(session, project)
    training = factories.run(session, project, "sample", state="queued")
    enqueue_run(session, training.id)
    comparisons(session, project, 2)
    found = started(session, judge(session, project, endpoint, "good", name="beside"))

    def train(_worker: Worker, run_id: int) -> None:
        assert run_id == training.id
        with make_session_factory(engine).begin() as own:
            state = select(Run.state).where(Run.id == found.id)
            wait_for(lambda: own.scalar(state) == "succeeded", "judging while a run trains")
            own.get_one(Run, run_id).state = "succeeded"

    monkeypatch.setattr(Worker, "_execute", train)
    work(settings)
    session.refresh(found)
    session.refresh(training)
    assert (found.state, training.state) == ("succeeded", "succeeded")


def test_what_fails_by_chance_is_repeated_and_a_bad_answer_is_told_by_name(
    session: Session, settings: Settings, endpoint: str
) -> None:
    project = factories.project(session)
    factories.rubric(session, project)
    busy = judge(session, project, endpoint, "busy")
    good, mute, long, cut = (
        comparisons(session, project, 1, text)[0]
        for text in ("", "I have no idea.", "A long question.", "It quotes itself.")
    )
    done = run(session, settings, busy)
    assert (done.state, done.result) == ("succeeded", {"judged": 1, "failed": 3, "before": 0})
    by_id = {row.comparison_id: row for row in rows(session)}
    assert by_id[good.id].verdict == -1
    assert by_id[mute.id].error == "The answer contains no verdict: Both are fine, I cannot say."
    assert by_id[long.id].error == "The endpoint refuses the question (400): the context is too long"
    assert (by_id[cut.id].error or "").startswith(
        "The answer was cut before its end: Response 1 ends with “Verdict: 1”"
    )
    # The next run asks about these again, and about nothing else.
    again = run(session, settings, busy)
    assert again.result == {"judged": 0, "failed": 3, "before": 0}
    assert len(rows(session)) == 4
    comparisons(session, project, 12)
    silent = run(session, settings, judge(session, project, endpoint, "mute", concurrency=1))
    assert silent.state == "failed"
    assert (silent.error or "").startswith(
        "The first 10 answers could not be read. The last one: The answer contains no"
    )


@pytest.mark.parametrize(
    ("model", "values", "said"),
    [
        ("nobody", {}, "does not have the model nobody, or does not offer chat completions (404): no such model"),
        ("locked", {"key": "wrong-key"}, "refuses the key (401): wrong key: Bearer ... Correct the judge's key."),
        ("away", {}, "answered 500: broken for good (2 attempts). Look at its log"),
        ("good", {"url": "http://127.0.0.1:9/v1"}, "cannot be reached"),
        ("good", {"url": "http://169.254.169.254/v1"}, "169.254.169.254: no judge is at such an address"),
        ("good", {"key_variable": "PREFLOOP_JUDGE_KEY"}, "sent only to hosts that PREFLOOP_JUDGE_HOSTS lists"),
    ],
)
def test_a_failed_test_says_why(
    session: Session, settings: Settings, endpoint: str, model: str, values: dict[str, Any], said: str
) -> None:
    project = factories.project(session)
    one = judge(session, project, endpoint, model, **values)
    done = run(session, settings, one, None)
    session.refresh(one)
    assert (done.state, one.served_model) == ("failed", None)
    assert said in (done.error or "")
    assert one.test_error == done.error
    assert "wrong-key" not in str(done.error) + done.log + str(done.spec) + (one.sealed_key or "")


def test_a_test_that_succeeds(
    session: Session, settings: Settings, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = factories.project(session)
    monkeypatch.setenv("PREFLOOP_JUDGE_KEY", "open-sesame")
    settings = settings.model_copy(update={"judge_hosts": "127.0.0.1"})
    by_variable = judge(session, project, endpoint, "locked", name="variable", key_variable="PREFLOOP_JUDGE_KEY")
    stored = judge(session, project, endpoint, "locked", name="stored", key="open-sesame")
    modern = judge(session, project, endpoint, "modern")
    for one in (by_variable, stored, modern):
        done = run(session, settings, one, None)
        session.refresh(one)
        assert (done.state, done.error, one.test_error) == ("succeeded", None, None)
        assert one.tested_at is not None
        assert one.served_model == f"served-{one.model}"
    assert "max_completion_tokens" in asked(endpoint, "modern")[-1]


def test_switching_a_judge_off_also_ends_its_run(session: Session, settings: Settings, sign_in: SignIn) -> None:
    project = factories.project(session)
    factories.rubric(session, project)
    one = judge(session, project)
    comparisons(session, project, 2)
    found = started(session, one)
    operator = sign_in("operator")
    assert operator.post(f"/projects/{project.slug}/judges/{one.id}/off").status_code == 303
    session.refresh(found)
    session.refresh(one)
    assert (found.state, one.off_at is None) == ("cancelled", False)
    work(settings)
    assert rows(session) == []


def test_the_test_of_a_silent_endpoint_can_be_cancelled(
    session: Session, settings: Settings, run_worker: Callable[..., ForkServerProcess]
) -> None:
    """It would hold up all judges of the worker for as long as an hour, times the repetitions."""
    one = judge(session, factories.project(session), timeout_seconds=3600)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        one.url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        found = started(session, one, None)
        run_worker()
        line, _ = silent.accept()
        with line:
            rounds.cancel_run(session, found, factories.user(session, "operator"))
            session.commit()

            def ended() -> bool:
                session.refresh(found)
                session.commit()
                return found.state == "cancelled"

            wait_for(ended, "the end of the run")
