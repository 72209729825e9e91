"""Chats with two models: who may talk, what the worker is asked, votes, and questions to labelers."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from app.artifacts import ArtifactStore
from app.errors import Conflict, InvalidInput, NotFound, TooMany
from app.labeling import assigning
from app.models import Comparison, Completion, ModelVersion, PlaygroundTurn, Project, Prompt, Run, User
from app.playground import queries, service
from app.playground.forms import ChatForm, CorrectionForm, FailureForm, SayForm
from app.prompts import service as prompts
from app.red_team import service as red_team
from app.red_team.forms import AcceptForm
from app.rounds import service as rounds
from app.rounds.sampling import NewSample
from app.specs import RUN_SPEC, SampleSpec
from tests import factories
from tests.conftest import SignedIn


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path)


@pytest.fixture
def project(session: Session) -> Project:
    project = factories.project(session)
    factories.published_rubric(session, project)
    return project


@pytest.fixture
def models(session: Session, project: Project) -> list[ModelVersion]:
    return [factories.model(session, project, base=f"models/{name}", name=name) for name in ("old", "new")]


@pytest.fixture
def owner(session: Session) -> User:
    return factories.user(session, "operator")


def begin(session: Session, project: Project, owner: User, models: list[ModelVersion], *, blind: bool = False) -> int:
    form = ChatForm(first_id=models[0].id, second_id=models[1].id, blind=blind)
    return service.start(session, project, owner, form).id


def say(session: Session, store: ArtifactStore, project: Project, chat: int, text: str) -> PlaygroundTurn:
    return service.say(session, store, project, chat, SayForm(idempotency_key=uuid4(), text=text))


def answer(session: Session, turn: PlaygroundTurn, first: str, second: str) -> None:
    """Store both models' answers to both lines, as the worker does."""
    run = session.get_one(Run, turn.run_id)
    said = [(0, 0, first), (0, 1, "dropped"), (1, 0, "dropped"), (1, 1, second)]
    samples = [NewSample(line, model, text, "eos", 3, 17, {}) for line, model, text in said]
    rounds.store_samples(session, run, samples)
    run.state = "succeeded"
    session.flush()
    session.refresh(turn)


def lines(session: Session, store: ArtifactStore, turn: PlaygroundTurn) -> list[list[dict[str, str]]]:
    spec = RUN_SPEC.validate_python(session.get_one(Run, turn.run_id).spec)
    assert isinstance(spec, SampleSpec)
    return [json.loads(line)["messages"] for line in store.resolve(spec.prompts).read_text().splitlines()]


def test_each_model_answers_its_own_line_of_the_conversation(
    session: Session, store: ArtifactStore, project: Project, owner: User, models: list[ModelVersion]
) -> None:
    chat = begin(session, project, owner, models)
    turn = say(session, store, project, chat, "Best bread?")
    run = session.get_one(Run, turn.run_id)
    spec = RUN_SPEC.validate_python(run.spec)
    assert isinstance(spec, SampleSpec)
    assert (run.kind, run.state, run.round_id) == ("playground", "queued", None)
    assert [model.base for model in spec.models] == ["models/old", "models/new"]
    assert lines(session, store, turn) == [[{"role": "user", "content": "Best bread?"}]] * 2
    answer(session, turn, "Rye.", "Wheat.")
    assert turn.first == {"text": "Rye.", "finish_reason": "eos", "n_tokens": 3}
    assert turn.second == {"text": "Wheat.", "finish_reason": "eos", "n_tokens": 3}

    second = say(session, store, project, chat, "Why?")
    assert [[each["content"] for each in line] for line in lines(session, store, second)] == [
        ["Best bread?", "Rye.", "Why?"],
        ["Best bread?", "Wheat.", "Why?"],
    ]
    # Nothing that a chat says is data of the project.
    assert session.scalars(select(Completion)).all() == []
    assert session.scalars(select(Prompt)).all() == []


def test_messages_come_one_after_the_other_and_once(
    session: Session, store: ArtifactStore, project: Project, owner: User, models: list[ModelVersion]
) -> None:
    chat = begin(session, project, owner, models)
    form = SayForm(idempotency_key=uuid4(), text="One")
    turn = service.say(session, store, project, chat, form)
    assert service.say(session, store, project, chat, form).id == turn.id
    with pytest.raises(Conflict, match="have not answered"):
        say(session, store, project, chat, "Two")
    with pytest.raises(InvalidInput, match="Nothing is written"):
        say(session, store, project, chat, "")
    with pytest.raises(Conflict, match="another chat"):
        service.say(session, store, project, begin(session, project, owner, models), form)


def test_a_run_that_failed_is_asked_again(
    session: Session, store: ArtifactStore, project: Project, owner: User, models: list[ModelVersion]
) -> None:
    chat = begin(session, project, owner, models)
    turn = say(session, store, project, chat, "One")
    before = turn.run_id
    service.say_again(session, store, project, chat, turn.id)
    assert turn.run_id == before  # it has not failed
    session.get_one(Run, before).state = "failed"
    session.flush()
    service.say_again(session, store, project, chat, turn.id)
    assert turn.run_id != before
    answer(session, turn, "Late.", "Later.")
    assert [each.state for each in queries.turns(session, chat)] == ["answered"]


def test_only_two_different_models_of_the_project_talk(
    session: Session, project: Project, owner: User, models: list[ModelVersion]
) -> None:
    reward = factories.model(session, project, "reward")
    foreign = factories.model(session, factories.project(session))
    for pair, words in (((0, 0), "same model"), ((reward, 1), "no such model"), ((0, foreign), "no such model")):
        ids = [models[each].id if isinstance(each, int) else each.id for each in pair]
        with pytest.raises(InvalidInput, match=words):
            service.start(session, project, owner, ChatForm(first_id=ids[0], second_id=ids[1]))


def test_a_chat_is_its_projects(
    session: Session, store: ArtifactStore, project: Project, owner: User, models: list[ModelVersion]
) -> None:
    chat = begin(session, project, owner, models)
    turn = say(session, store, project, chat, "One")
    with pytest.raises(NotFound):
        service.any_chat(session, factories.project(session), chat)
    with pytest.raises(NotFound):
        service.up_to(session, project, begin(session, project, owner, models), turn.id)


def test_a_blind_chat_draws_the_sides_and_tells_them_after_the_first_vote(
    session: Session,
    store: ArtifactStore,
    project: Project,
    owner: User,
    models: list[ModelVersion],
    sign_in: Callable[..., SignedIn],
) -> None:
    chats = [begin(session, project, owner, models, blind=True) for _ in range(40)]
    firsts = {service.any_chat(session, project, chat).first.id for chat in chats}
    assert firsts == {model.id for model in models}  # always the same side: by chance once in 2 ** 39
    chat = chats[0]
    turn = say(session, store, project, chat, "Best bread?")
    with pytest.raises(Conflict, match="no two answers"):
        service.vote(session, project, chat, turn.id, 1)
    answer(session, turn, "Rye.", "Wheat.")
    session.commit()
    client, address = sign_in(user=owner), f"/projects/{project.slug}/playground/{chat}"
    page = client.get(address).text
    assert "Model A" in page
    assert "Rye." in page
    assert not [model.name for model in models if f"<bdi>{model.name}</bdi>" in page]
    assert client.post(f"{address}/turns/{turn.id}/vote", {"vote": "1"}).status_code == 303
    page = client.get(address).text
    assert all(f"<bdi>{model.name}</bdi>" in page for model in models)
    assert re.search(r'value="1" aria-pressed="true"', page)
    session.refresh(turn)
    assert turn.vote == 1


def test_labelers_are_asked_about_the_first_answers_and_never_to_measure(
    session: Session, store: ArtifactStore, project: Project, owner: User, models: list[ModelVersion]
) -> None:
    chat = begin(session, project, owner, models)
    turn = say(session, store, project, chat, "Best bread?")
    with pytest.raises(Conflict, match="no two different answers"):
        service.ask_labelers(session, project, owner, chat, turn.id)
    answer(session, turn, "Rye.", "Wheat.")
    comparison = service.ask_labelers(session, project, owner, chat, turn.id)
    assert service.ask_labelers(session, project, owner, chat, turn.id).id == comparison.id  # twice changes nothing
    assert session.scalars(select(Comparison.id)).all() == [comparison.id]
    assert (comparison.purpose, comparison.selection) == ("train", {"policy": "playground"})
    a, b = (session.get_one(Completion, each) for each in (comparison.completion_a_id, comparison.completion_b_id))
    assert [(each.text, each.model_version_id) for each in (a, b)] == [
        ("Rye.", models[0].id),
        ("Wheat.", models[1].id),
    ]
    task = assigning.next_task(session, project, factories.user(session))
    assert task is not None
    assert sorted(task.responses) == ["Rye.", "Wheat."]

    second = say(session, store, project, chat, "Why?")
    answer(session, second, "Taste.", "Habit.")
    with pytest.raises(Conflict, match="different conversations"):
        service.ask_labelers(session, project, owner, chat, second.id)


@pytest.mark.parametrize("others", [1, 2])
def test_who_knows_which_model_said_what_does_not_judge_it_if_enough_others_do(
    session: Session, store: ArtifactStore, project: Project, models: list[ModelVersion], others: int
) -> None:
    project.overlap = 2
    owner, asker = (factories.user(session, "operator", "labeler") for _ in range(2))
    people = [factories.user(session) for _ in range(others)]
    factories.user(session, "admin")  # labels nothing
    chat = begin(session, project, owner, models)
    turn = say(session, store, project, chat, "Best bread?")
    answer(session, turn, "Rye.", "Wheat.")
    comparison = service.ask_labelers(session, project, asker, chat, turn.id)
    assert comparison.overlap == 2
    given = [assigning.next_task(session, project, each) is not None for each in (owner, asker)]
    assert given == [others == 1] * 2
    if others == 2:
        assert all(assigning.next_task(session, project, each) for each in people)


def test_a_prompt_that_measures_policies_is_not_asked_about(
    session: Session, store: ArtifactStore, project: Project, owner: User, models: list[ModelVersion]
) -> None:
    prompts.add(session, project.id, [{"role": "user", "content": "Best bread?"}], split="heldout")
    chat = begin(session, project, owner, models)
    turn = say(session, store, project, chat, "Best bread?")
    answer(session, turn, "Rye.", "Wheat.")
    with pytest.raises(Conflict, match="measures policies"):
        service.ask_labelers(session, project, owner, chat, turn.id)


def test_a_bad_answer_becomes_a_rated_attempt_and_a_better_one_a_demonstration(
    session: Session, store: ArtifactStore, project: Project, owner: User, models: list[ModelVersion]
) -> None:
    chat = begin(session, project, owner, models)
    answer(session, say(session, store, project, chat, "Best bread?"), "Rye.", "Wheat.")
    turn = say(session, store, project, chat, "Why?")
    failure = FailureForm(side=1, severity=3, safety_category="other")
    with pytest.raises(Conflict, match="not answered yet"):
        service.report_failure(session, project, owner, chat, turn.id, failure)
    answer(session, turn, "Taste.", "Mud.")

    attempt = service.report_failure(session, project, owner, chat, turn.id, failure)
    assert service.report_failure(session, project, owner, chat, turn.id, failure).id == attempt.id
    line = ["Best bread?", "Wheat.", "Why?"]
    assert [message["content"] for message in attempt.messages] == line
    assert (attempt.answer, attempt.severity, attempt.model_version_id) == (turn.second, 3, models[1].id)
    accepted = red_team.accept(session, project, owner, AcceptForm(attempts=[attempt.id], split="regression"))
    assert accepted == (1, 0, 0)
    kept = session.scalars(select(Completion)).one()
    assert (kept.text, kept.prompt_id, kept.model_version_id) == ("Mud.", attempt.prompt_id, models[1].id)

    better = CorrectionForm(side=1, text=" Crumb and crust.\n")
    written = service.correct(session, project, owner, chat, turn.id, better)
    assert (written.text, written.state, written.author_id) == (" Crumb and crust.\n", "pending", owner.id)
    assert written.prompt_id == attempt.prompt_id  # the same conversation stands once in a project
    with pytest.raises(Conflict, match="already exists"):
        service.correct(session, project, owner, chat, turn.id, better)
    for wrong, words in (("Mud.", "did not change the model's answer"), (" \n", "Nothing is written")):
        with pytest.raises(InvalidInput, match=words):
            service.correct(session, project, owner, chat, turn.id, CorrectionForm(side=1, text=wrong))


def test_both_answers_to_a_message_may_fail_and_both_attempts_be_accepted(
    session: Session, store: ArtifactStore, project: Project, owner: User, models: list[ModelVersion]
) -> None:
    """One run gave both answers to a prompt."""
    chat = begin(session, project, owner, models)
    turn = say(session, store, project, chat, "Best bread?")
    answer(session, turn, "", "Mud.")
    attempts = [
        service.report_failure(
            *(session, project, owner, chat, turn.id), FailureForm(side=side, severity=3, safety_category="other")
        ).id
        for side in (0, 1)
    ]
    assert red_team.accept(session, project, owner, AcceptForm(attempts=attempts, split="train")) == (1, 1, 0)
    kept = session.scalars(select(Completion).order_by(Completion.sample_index)).all()
    assert [(each.text, each.sample_index) for each in kept] == [("", 0), ("Mud.", 1)]

    turn = say(session, store, project, chat, "Why?")
    answer(session, turn, "Taste.", "Taste.")
    with pytest.raises(Conflict, match="An earlier answer of this model is empty"):
        service.report_failure(
            *(session, project, owner, chat, turn.id), FailureForm(side=0, severity=3, safety_category="other")
        )


def test_nothing_becomes_of_answers_while_a_chat_is_blind(
    session: Session, store: ArtifactStore, project: Project, owner: User, models: list[ModelVersion]
) -> None:
    """An attempt names its model."""
    chat = begin(session, project, owner, models, blind=True)
    turn = say(session, store, project, chat, "Best bread?")
    answer(session, turn, "Rye.", "Wheat.")
    failure = FailureForm(side=0, severity=1, safety_category="hate")
    with pytest.raises(Conflict, match="blind until somebody votes"):
        service.report_failure(session, project, owner, chat, turn.id, failure)
    service.vote(session, project, chat, turn.id, -1)
    assert service.report_failure(session, project, owner, chat, turn.id, failure).severity == 1


def test_the_pages(sign_in: Callable[..., SignedIn], session: Session, project: Project, store: ArtifactStore) -> None:
    session.commit()
    client, address = sign_in("operator"), f"/projects/{project.slug}/playground"
    assert "Only one model so far" in client.get(address).text
    pair = [factories.model(session, project, name=name) for name in ("old", "new")]
    session.commit()
    refused = client.post(address, {"first_id": pair[0].id, "second_id": pair[0].id})
    assert (refused.status_code, "same model" in refused.text) == (422, True)
    begun = client.post(address, {"first_id": pair[0].id, "second_id": pair[1].id, "blind": "true"})
    assert begun.status_code == 303
    chat = begun.headers["location"]
    key = re.search(r'name="idempotency_key" value="([^"]+)"', client.get(chat).text)
    assert key
    assert client.post(chat, {"idempotency_key": key[1], "text": "Hello <b>you</b>"}).status_code == 303
    page = client.get(chat).text
    assert "Hello &lt;b&gt;you&lt;/b&gt;" in page
    assert "No worker is running" in page
    refused = client.post(chat, {"idempotency_key": str(uuid4()), "text": "What I typed"})
    assert refused.status_code == 409
    assert "What I typed</textarea>" in refused.text
    assert "Chat 1" in client.get(address).text


def test_one_persons_chats_do_not_fill_the_queue(
    session: Session, store: ArtifactStore, project: Project, owner: User, models: list[ModelVersion]
) -> None:
    chats = [begin(session, project, owner, models) for _ in range(service.MAX_WAITING + 1)]
    turns = [say(session, store, project, chat, "Hello") for chat in chats[:-1]]
    with pytest.raises(TooMany, match="5 messages in chats started by"):
        say(session, store, project, chats[-1], "Hello")
    # Somebody else's chats are counted by themselves.
    assert say(session, store, project, begin(session, project, factories.user(session, "admin"), models), "Hello")
    answer(session, turns[0], "One.", "Two.")
    turns.append(say(session, store, project, chats[-1], "Hello"))
    # One that failed waits no longer; it is not asked again beyond the limit either.
    for turn in turns[1:3]:
        session.get_one(Run, turn.run_id).state = "failed"
    session.flush()
    service.say_again(session, store, project, chats[1], turns[1].id)
    say(session, store, project, chats[0], "More")
    with pytest.raises(TooMany):
        service.say_again(session, store, project, chats[2], turns[2].id)


def test_messages_go_before_rounds_up_to_a_number_and_not_again(
    session: Session,
    store: ArtifactStore,
    project: Project,
    owner: User,
    models: list[ModelVersion],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(service, "AHEAD_AN_HOUR", 1)
    first, second = (begin(session, project, owner, models) for _ in range(2))
    turn = say(session, store, project, first, "One")
    say(session, store, project, second, "Two")
    session.get_one(Run, turn.run_id).state = "failed"
    session.flush()
    service.say_again(session, store, project, first, turn.id)
    priorities = session.scalars(text("SELECT priority FROM procrastinate_jobs ORDER BY id")).all()
    assert priorities == [1, 0, 0]
