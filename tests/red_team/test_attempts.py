"""Sending attempts, results of their runs, rating, and turning them into prompts."""

import json
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from app.artifacts import ArtifactStore
from app.errors import Conflict, Forbidden, InvalidInput, NotFound, TooMany
from app.labeling import queries as labeling
from app.models import Comparison, Completion, ProjectLabeler, Prompt, RedTeamAttempt, Run
from app.prompts.service import digest
from app.red_team import queries, service, views
from app.red_team.forms import AcceptForm, AttemptFilter, RatingForm
from app.rounds import queries as rounds_queries
from app.rounds import service as rounds
from app.settings import SamplingServer
from app.specs import RUN_SPEC, SampleSpec
from tests import factories
from tests.qualification.quizzes import take, with_quiz
from tests.red_team.attempts import answer, attempts, form, project_with_model, rated, run_of, send


def state(session: Session, attempt: RedTeamAttempt) -> str:
    found = queries.attempt(session, attempt.project_id, attempt.id)
    assert found is not None
    return found.state


def test_an_attempt_asks_the_present_policy_once(session: Session, tmp_path: Path) -> None:
    project = project_with_model(session, generation={"samples_per_prompt": 8, "max_new_tokens": 30})
    ann, store = factories.user(session), ArtifactStore(tmp_path)
    policy = factories.model(session, project, base="models/new", adapter="models/adapter")
    project.policy_id = policy.id
    given = form("How do I …?", goal="an address", domain="chat")
    attempt = service.send(session, store, project, ann, given)
    run = run_of(session, attempt)
    spec = RUN_SPEC.validate_python(run.spec)
    assert isinstance(spec, SampleSpec)
    assert (run.kind, run.state, run.round_id) == ("red_team", "queued", None)
    assert [(model.base, model.adapter) for model in spec.models] == [("models/new", "models/adapter")]
    assert (spec.generation.samples_per_prompt, spec.generation.max_new_tokens) == (1, 30)
    (line,) = store.resolve(spec.prompts).read_text().splitlines()
    assert json.loads(line)["id"] == attempt.id
    assert json.loads(line)["messages"] == [{"role": "user", "content": "How do I …?"}]
    assert (attempt.model_version_id, attempt.goal, attempt.domain) == (policy.id, "an address", "chat")
    assert state(session, attempt) == "waiting"
    # The same form again, from a double click or another tab.
    assert service.send(session, store, project, ann, given).id == attempt.id
    assert session.scalar(select(func.count()).select_from(Run)) == 1
    with pytest.raises(Conflict, match="already sent"):
        service.send(session, store, project, ann, form("Other.", idempotency_key=given.idempotency_key))
    with pytest.raises(Conflict, match="already sent"):
        service.send(session, store, project, factories.user(session), given)


def test_a_server_that_samples_answers_attempts_too(session: Session, tmp_path: Path) -> None:
    project, ann = project_with_model(session), factories.user(session)
    server = SamplingServer("http://sampler/v1", "tuned")
    attempt = service.send(session, ArtifactStore(tmp_path), project, ann, form(), server)
    spec = RUN_SPEC.validate_python(run_of(session, attempt).spec)
    assert isinstance(spec, SampleSpec)
    assert [(each.url, each.model) for each in spec.servers if each] == [("http://sampler/v1", "tuned")]


def test_an_attempt_goes_before_what_else_is_queued(session: Session, tmp_path: Path) -> None:
    project, ann = project_with_model(session), factories.user(session)
    factories.rubric(session, project)
    factories.prompt(session, project)
    rounds.begin_sampling(session, ArtifactStore(tmp_path), project)
    attempt = send(session, project, ann, tmp_path)
    order = session.execute(
        text("SELECT (args->>'run_id')::int FROM procrastinate_jobs ORDER BY priority DESC, id")
    ).scalars()
    assert next(order) == attempt.run_id


def test_what_cannot_be_asked_is_refused_with_the_reason(session: Session, tmp_path: Path) -> None:
    ann, store = factories.user(session), ArtifactStore(tmp_path)
    with pytest.raises(InvalidInput, match="no model"):
        service.send(session, store, factories.project(session), ann, form())
    project = project_with_model(session)
    with pytest.raises(InvalidInput, match="Nothing is written"):
        service.send(session, store, project, ann, form("  "))
    assert attempts(session) == []
    waiting = [send(session, project, ann, tmp_path, f"Attempt {n}") for n in range(service.MAX_WAITING)]
    with pytest.raises(TooMany):
        send(session, project, ann, tmp_path)
    send(session, project, factories.user(session), tmp_path)  # others are not concerned
    answer(session, waiting[2])
    send(session, project, ann, tmp_path)


def test_cancelled_attempts_are_not_asked_again_beyond_what_may_wait(session: Session, tmp_path: Path) -> None:
    """This holds across projects, because all attempts wait in one queue."""
    ann, waiting = factories.user(session), []
    for project in (project_with_model(session), project_with_model(session)):
        for n in range(service.MAX_WAITING):
            waiting.append((project, send(session, project, ann, tmp_path, f"Attempt {n}")))
            service.cancel(session, project, ann, waiting[-1][1].id)
    for project, attempt in waiting[: service.MAX_WAITING]:
        service.send_again(session, ArtifactStore(tmp_path), project, ann, attempt.id)
    for project, attempt in waiting[service.MAX_WAITING :]:
        with pytest.raises(TooMany):
            service.send_again(session, ArtifactStore(tmp_path), project, ann, attempt.id)
    assert queries.count_waiting(session, ann.id) == service.MAX_WAITING


def test_who_makes_very_many_attempts_holds_up_no_round(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "AHEAD_AN_HOUR", 2)
    project, ann = project_with_model(session), factories.user(session)
    factories.rubric(session, project)
    factories.prompt(session, project)
    sampling = rounds.begin_sampling(session, ArtifactStore(tmp_path), project)
    attempts = [send(session, project, ann, tmp_path, f"Attempt {n}") for n in range(4)]
    runs = [attempt.run_id for attempt in attempts]
    order = text("SELECT (args->>'run_id')::int FROM procrastinate_jobs ORDER BY priority DESC, id")
    assert session.scalars(order).all() == [*runs[:2], sampling.id, *runs[2:]]
    # Sent again an hour later, an attempt is none of the last hour's.
    attempts[0].created_at -= timedelta(hours=2)
    session.get_one(Run, runs[0]).state = "failed"
    session.flush()
    service.send_again(session, ArtifactStore(tmp_path), project, ann, attempts[0].id)
    assert session.scalars(order).all() == [*runs[:2], sampling.id, *runs[2:], attempts[0].run_id]


@pytest.mark.parametrize(("state", "told"), [("paused", "Please call Bob"), ("removed", "no longer a labeler")])
def test_who_is_paused_or_removed_makes_and_rates_no_attempts(
    session: Session, tmp_path: Path, state: str, told: str
) -> None:
    project, ann = project_with_model(session), factories.user(session)
    answered = send(session, project, ann, tmp_path)
    answer(session, answered)
    session.add(ProjectLabeler(project_id=project.id, labeler_id=ann.id, state=state, reason="Please call Bob."))
    session.flush()
    with pytest.raises(Forbidden, match=told):
        send(session, project, ann, tmp_path)
    with pytest.raises(Forbidden, match=told):
        service.rate(session, project, ann, answered.id, RatingForm(severity=0))
    with pytest.raises(Forbidden, match=told):
        service.send_again(session, ArtifactStore(tmp_path), project, ann, answered.id)
    assert [attempt.severity for attempt in attempts(session)] == [None]


def test_who_has_not_passed_the_quiz_makes_no_attempts(session: Session, tmp_path: Path) -> None:
    project, ann = project_with_model(session), factories.user(session)
    with_quiz(session, project)
    with pytest.raises(Forbidden, match="training quiz"):
        send(session, project, ann, tmp_path)
    take(session, project, ann)
    send(session, project, ann, tmp_path)


def test_the_author_cancels_what_waits(session: Session, tmp_path: Path) -> None:
    project, ann = project_with_model(session), factories.user(session)
    attempt = send(session, project, ann, tmp_path)
    for stranger in (factories.user(session), factories.user(session, "admin")):
        with pytest.raises(Forbidden):
            service.cancel(session, project, stranger, attempt.id)
    with pytest.raises(NotFound):
        service.cancel(session, factories.project(session), ann, attempt.id)
    for _ in range(2):  # pressed twice
        service.cancel(session, project, ann, attempt.id)
        assert (run_of(session, attempt).state, state(session, attempt)) == ("cancelled", "failed")
    # It no longer counts among those that wait, and can be asked again.
    for _ in range(service.MAX_WAITING - 1):
        send(session, project, ann, tmp_path)
    service.send_again(session, ArtifactStore(tmp_path), project, ann, attempt.id)
    run = run_of(session, attempt)
    rounds.run_started(session, run)
    service.cancel(session, project, ann, attempt.id)  # the worker ends it with its next heartbeat
    assert (run.cancel_requested, state(session, attempt)) == (True, "waiting")
    answer(session, attempt)  # or it was answered before
    rounds.run_finished(session, ArtifactStore(tmp_path), run, {"samples": 1})
    service.cancel(session, project, ann, attempt.id)
    assert (run.state, state(session, attempt)) == ("succeeded", "answered")


def test_the_answer_stays_with_the_attempt(session: Session, tmp_path: Path) -> None:
    project, ann = project_with_model(session), factories.user(session)
    factories.rubric(session, project)
    factories.prompt(session, project)
    attempt = send(session, project, ann, tmp_path)
    run = run_of(session, attempt)
    rounds.run_started(session, run)
    answer(session, attempt, "I will\0 not.")
    answer(session, attempt, "Another one.")  # a worker that died before the run's end does it again
    rounds.run_finished(session, ArtifactStore(tmp_path), run, {"samples": 1})
    assert attempt.answer == {
        "text": "I will\ufffd not.",
        "finish_reason": "eos",
        "n_tokens": 3,
        "seed": 17,
        "sampling": {"temperature": 1.0, "max_new_tokens": 8},
    }
    assert (state(session, attempt), run.state) == ("answered", "succeeded")
    # Nothing of it is seen by anything else.
    for table, n in ((Prompt, 1), (Completion, 0), (Comparison, 0)):
        assert session.scalar(select(func.count()).select_from(table)) == n
    assert rounds_queries.sampling_runs(session, project.id) == []


def test_an_attempt_under_way_does_not_look_like_the_queues_sampling(session: Session, tmp_path: Path) -> None:
    project, ann = project_with_model(session), factories.user(session)
    factories.rubric(session, project)
    factories.prompt(session, project)
    send(session, project, ann, tmp_path)
    assert labeling.sampling(session, project.id) is None
    rounds.begin_sampling(session, ArtifactStore(tmp_path), project)  # and does not keep it from beginning


def test_after_a_failure_the_policy_of_now_is_asked(session: Session, tmp_path: Path) -> None:
    project, ann, store = project_with_model(session), factories.user(session), ArtifactStore(tmp_path)
    attempt = send(session, project, ann, tmp_path)
    first = run_of(session, attempt)
    service.send_again(session, store, project, ann, attempt.id)
    assert attempt.run_id == first.id  # an answer is on its way
    rounds.run_failed(session, first, "The model is gone.")
    session.flush()
    assert state(session, attempt) == "failed"
    with pytest.raises(Forbidden):
        service.send_again(session, store, project, factories.user(session), attempt.id)
    better = factories.model(session, project, base="models/better")
    project.policy_id = better.id
    service.send_again(session, store, project, ann, attempt.id)
    second = run_of(session, attempt)
    service.send_again(session, store, project, ann, attempt.id)  # pressed twice
    assert (attempt.run_id, attempt.model_version_id) == (second.id, better.id)
    assert second.spec["models"][0]["base"] == "models/better"
    assert state(session, attempt) == "waiting"
    # The first run, should it come back to life, has nothing to say any more.
    sample = rounds.NewSample(attempt.id, 0, "Too late.", "eos", 2, 1, {})
    rounds.store_samples(session, first, [sample])
    session.refresh(attempt)
    assert attempt.answer is None
    answer(session, attempt)
    service.send_again(session, store, project, ann, attempt.id)
    assert state(session, attempt) == "answered"


def test_the_author_rates_and_may_think_again(session: Session, tmp_path: Path) -> None:
    project, ann = project_with_model(session), factories.user(session)
    attempt = send(session, project, ann, tmp_path)
    rating = RatingForm(severity=3, tags=["Privacy", "jailbreak", "privacy"], own_tag="  Doxxing ", note=" Bad.\r\n")
    with pytest.raises(Conflict, match="not answered yet"):
        service.rate(session, project, ann, attempt.id, rating)
    answer(session, attempt)
    with pytest.raises(Forbidden):
        service.rate(session, project, factories.user(session), attempt.id, rating)
    with pytest.raises(NotFound):
        service.rate(session, project_with_model(session), ann, attempt.id, rating)
    service.rate(session, project, ann, attempt.id, rating)
    assert (attempt.severity, attempt.tags, attempt.note) == (3, ["privacy", "jailbreak", "doxxing"], "Bad.")
    first = attempt.rated_at
    service.rate(session, project, ann, attempt.id, rating)  # sent twice
    assert attempt.rated_at == first
    service.rate(session, project, ann, attempt.id, RatingForm(severity=0))
    assert (attempt.severity, attempt.tags, state(session, attempt)) == (0, [], "rated")
    admin = factories.user(session, "admin")
    service.accept(session, project, admin, AcceptForm(attempts=[attempt.id], split="train"))
    with pytest.raises(Conflict, match="has become a prompt"):
        service.rate(session, project, ann, attempt.id, rating)


def test_accepted_attempts_are_adversarial_prompts_with_the_answer(session: Session, tmp_path: Path) -> None:
    project, ann, admin = project_with_model(session), factories.user(session), factories.user(session, "admin")
    attempt = service.send(session, ArtifactStore(tmp_path), project, ann, form("Attack!", domain="chat"))
    unrated = send(session, project, ann, tmp_path, "Later.")
    answer(session, attempt, "Sure.")
    service.rate(session, project, ann, attempt.id, RatingForm(severity=2))
    twin = rated(session, project, 1, messages=attempt.messages)
    known = factories.prompt(session, project, "Known.", split="train")
    known.digest = digest(known.messages)
    again = rated(session, project, 3, messages=known.messages)
    foreign = rated(session, project_with_model(session), 3)
    ids = [attempt.id, unrated.id, twin.id, again.id, foreign.id]
    done = service.accept(session, project, admin, AcceptForm(attempts=ids, split="heldout"))
    assert done == (1, 2, 1)  # the twin's conversation is a prompt by then
    prompt = session.get_one(Prompt, attempt.prompt_id)
    assert (prompt.split, prompt.difficulty, prompt.domain) == ("heldout", "adversarial", "chat")
    assert (prompt.safety_category, prompt.source) == ("privacy", "red team")
    assert prompt.messages == [{"role": "user", "content": "Attack!"}]
    assert twin.prompt_id == prompt.id
    assert (again.prompt_id, known.split) == (known.id, "train")
    said = session.scalars(select(Completion).where(Completion.prompt_id == prompt.id).order_by(Completion.id)).all()
    assert [(row.text, row.model_version_id, row.run_id) for row in said] == [
        ("Sure.", project.policy_id, attempt.run_id),
        ("Sure.", project.policy_id, None),
    ]
    assert foreign.prompt_id is None
    assert service.accept(session, project, admin, AcceptForm(attempts=ids, split="train")) == (0, 0, 1)
    assert [prompt.id] == [found.id for found in rounds_queries.prompts_to_evaluate(session, project.id, 10)]


def test_success_rates_by_model_and_category(session: Session) -> None:
    project = project_with_model(session)
    old, new = project.policy_id, factories.model(session, project, name="new").id
    for severity in (0, 0, 1, 2):
        rated(session, project, severity, "hate", model_version_id=old)
    for severity in (3, 3):
        rated(session, project, severity, "privacy", model_version_id=old)
    rated(session, project, 0, "hate", model_version_id=new)
    rated(session, project_with_model(session), 3)
    rows = views.rates(queries.outcomes(session, project.id))
    assert [(row.model, row.category, row.by_severity, row.n) for row in rows] == [
        ("new", "", (1, 0, 0, 0), 1),
        ("new", "hate", (1, 0, 0, 0), 1),
        ("base", "", (2, 1, 1, 2), 6),
        ("base", "hate", (2, 1, 1, 0), 4),
        ("base", "privacy", (0, 0, 0, 2), 2),
    ]
    # Wilson (1927) of 3 in 6 at 95%: (3 + z²/2)/(6 + z²) ∓ z·sqrt(3·3/6 + z²/4)/(6 + z²).
    total = rows[2]
    assert total.share == 0.5
    assert (total.low, total.high) == pytest.approx((0.18762, 0.81238), abs=1e-5)
    assert [row.share for row in rows] == [0, 0, 0.5, 0.25, 1]


def test_the_list_is_filtered(session: Session, tmp_path: Path) -> None:
    project, ann = project_with_model(session), factories.user(session)
    a = rated(session, project, 3, "hate")
    b = rated(session, project, 0, "privacy", note="n")
    waiting = send(session, project, ann, tmp_path, "Needle here")
    failed = send(session, project, ann, tmp_path)
    rounds.run_failed(session, run_of(session, failed), "Out of memory.")
    answered = send(session, project, ann, tmp_path)
    answer(session, answered, "A hidden THING")
    accepted = rated(session, project, 2, "hate")
    service.accept(session, project, ann, AcceptForm(attempts=[accepted.id], split="regression"))
    session.flush()

    def found(**wanted: object) -> list[int]:
        listing = queries.listing(session, project.id, AttemptFilter.model_validate(wanted))
        assert listing.total == len(listing.rows)
        return [seen.attempt.id for seen in listing.rows]

    assert found() == [accepted.id, answered.id, failed.id, waiting.id, b.id, a.id]
    assert found(state="waiting") == [waiting.id]
    assert found(state="failed") == [failed.id]
    assert found(state="answered") == [answered.id]
    assert found(state="rated") == [accepted.id, b.id, a.id]
    assert found(state="accepted") == [accepted.id]
    assert found(category="hate", severity="3") == [a.id]
    assert found(severity=0) == [b.id]
    assert found(text="needle") == [waiting.id]
    assert found(text="thing") == [answered.id]
    assert found(model=project.policy_id) == found()
    assert queries.count_states(session, project) == {
        "waiting": 1, "failed": 1, "answered": 1, "rated": 2, "accepted": 1,
    }  # fmt: skip
    assert [seen.attempt.id for seen in queries.own(session, project.id, ann.id, None).rows] == [
        answered.id, failed.id, waiting.id,
    ]  # fmt: skip


def test_what_an_attempt_waits_for(session: Session, tmp_path: Path) -> None:
    project, ann = project_with_model(session), factories.user(session)
    training = factories.run(session, project, "ppo", state="running")
    first, second = send(session, project, ann, tmp_path), send(session, project, ann, tmp_path)
    busy = queries.busy(session, second)
    assert (busy.run, busy.ahead, busy.worker) == (training, 1, False)
    session.execute(text("INSERT INTO procrastinate_workers (last_heartbeat) VALUES (now())"))
    training.state = "succeeded"
    run_of(session, first).state = "running"
    session.flush()
    busy = queries.busy(session, second)
    assert (busy.run, busy.ahead, busy.worker) == (run_of(session, first), 0, True)


def test_what_an_attempt_waits_for_in_another_project_is_not_told(session: Session, tmp_path: Path) -> None:
    theirs, mine, ann = project_with_model(session), project_with_model(session), factories.user(session)
    training = factories.run(session, theirs, "ppo", state="running")
    send(session, theirs, ann, tmp_path)
    attempt = send(session, mine, ann, tmp_path)
    assert queries.busy(session, attempt) == (None, True, 0, False)
    training.state = "succeeded"
    session.flush()
    assert queries.busy(session, attempt) == (None, False, 0, False)


def test_keys_are_unique_across_people(session: Session, tmp_path: Path) -> None:
    project, ann, bob = project_with_model(session), factories.user(session), factories.user(session)
    key = uuid4()
    service.send(session, ArtifactStore(tmp_path), project, ann, form(idempotency_key=key))
    with pytest.raises(Conflict):
        service.send(session, ArtifactStore(tmp_path), project, bob, form(idempotency_key=key))
