"""Chats with two models: messages, votes, and what staff can do with answers.

All staff of a project share its chats. A vote is only an impression, and no model trains on it. Labelers who are asked
about two answers, without knowing which model wrote which, give judgments that models do train on. A bad answer can be
stored as a red-team attempt, or corrected as a demonstration.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from secrets import SystemRandom
from typing import Any, NamedTuple
from uuid import uuid5

from sqlalchemy.orm import Session

from app.access import gate_queries
from app.artifacts import ArtifactStore
from app.audit import audit
from app.demonstrations import service as demonstrations
from app.documents import LabelingSettings
from app.errors import Conflict, InvalidInput, NotFound, TooMany
from app.labeling import opening, recusal
from app.models import (
    Comparison,
    Completion,
    Demonstration,
    ModelVersion,
    PlaygroundChat,
    PlaygroundTurn,
    Project,
    RedTeamAttempt,
    User,
)
from app.playground import queries
from app.playground.forms import ChatForm, CorrectionForm, FailureForm, SayForm
from app.playground.queries import Chat, Turn
from app.prompts import service as prompts
from app.red_team import service as red_team
from app.rounds import service as rounds
from app.rounds.adoption import POLICY_ROLES
from app.rows import PromptRow
from app.settings import SamplingServer

MOST_TURNS = 20
# Limit on messages in one person's chats that wait for answers, so that nobody fills the shared queue.
MAX_WAITING = 5
# This many messages per hour go ahead of other jobs; repeated messages never do. Otherwise one person could hold up
# rounds indefinitely.
AHEAD_AN_HOUR = 60
SELECTION = {"policy": "playground"}  # for a comparison: a person chose the pair, so it must never measure a policy


def models(session: Session, project: Project) -> list[ModelVersion]:
    """Return the project's models that can chat, newest first."""
    return queries.models(session, project.id, POLICY_ROLES)


def start(session: Session, project: Project, owner: User, form: ChatForm) -> PlaygroundChat:
    """Begin a chat.

    Raises:
        InvalidInput: both models are the same, or one is not the project's.
    """
    known = {model.id for model in models(session, project)}
    pair = [form.first_id, form.second_id]
    if not known.issuperset(pair):
        raise InvalidInput("This project has no such model.", "Choose two models from the list.")
    if pair[0] == pair[1]:
        raise InvalidInput("Both sides are the same model.", "Choose two different models.")
    if form.blind:
        SystemRandom().shuffle(pair)
    chat = PlaygroundChat(
        project_id=project.id, owner_id=owner.id, first_id=pair[0], second_id=pair[1], is_blind=form.blind
    )
    session.add(chat)
    session.flush()
    return chat


def say(
    session: Session,
    store: ArtifactStore,
    project: Project,
    chat_id: int,
    form: SayForm,
    server: SamplingServer | None = None,
) -> PlaygroundTurn:
    """Ask both models. Sending the same form again changes nothing.

    Raises:
        NotFound: no such chat here.
        InvalidInput: nothing is written.
        Conflict: the last message failed or is not answered yet, or the chat has the maximum length.
        TooMany: `MAX_WAITING` messages are waiting already.
    """
    chat = any_chat(session, project, chat_id, lock=True)
    known = queries.turn_by_key(session, form.idempotency_key)
    if known is not None and known.chat_id == chat_id:
        return known
    if not form.text:
        raise InvalidInput("Nothing is written yet.", "Write a message to both models.")
    said = queries.turns(session, chat_id)
    if len(said) >= MOST_TURNS:
        raise Conflict(f"A chat has at most {MOST_TURNS} messages.", "Start another chat.")
    if said and said[-1].state != "answered":
        raise Conflict(
            "The models have not answered the previous message yet.",
            "Wait for the answers, or ask again if that failed.",
        )
    if known is not None:
        raise Conflict("This form was already sent in another chat.", "Open the page again.")
    _refuse_too_many(session, chat)
    ahead = queries.count_lately(session, chat.owner.id) < AHEAD_AN_HOUR
    run_id = _ask(session, store, project, chat, [turn.turn for turn in said], form.text, server, ahead=ahead)
    turn = PlaygroundTurn(chat_id=chat_id, text=form.text, run_id=run_id, idempotency_key=form.idempotency_key)
    session.add(turn)
    session.flush()
    return turn


def say_again(
    session: Session,
    store: ArtifactStore,
    project: Project,
    chat_id: int,
    turn_id: int,
    server: SamplingServer | None = None,
) -> None:
    """Ask the models again if their run failed; otherwise do nothing.

    Raises:
        NotFound: as `up_to`.
        TooMany: `MAX_WAITING` messages are waiting already.
    """
    chat, said = up_to(session, project, chat_id, turn_id)
    if said[-1].state == "failed":
        _refuse_too_many(session, chat)
        turn = said[-1].turn
        turn.run_id = _ask(session, store, project, chat, [each.turn for each in said[:-1]], turn.text, server)
        session.flush()


def _refuse_too_many(session: Session, chat: Chat) -> None:
    queries.lock_owner(session, chat.owner.id)
    if queries.count_waiting(session, chat.owner.id) >= MAX_WAITING:
        raise TooMany(
            f"{MAX_WAITING} messages in chats started by {chat.owner.name} are still waiting for answers.",
            "Send this one when the first is answered.",
        )


def _ask(
    session: Session,
    store: ArtifactStore,
    project: Project,
    chat: Chat,
    before: Sequence[PlaygroundTurn],
    text: str,
    server: SamplingServer | None,
    *,
    ahead: bool = False,
) -> int:
    lines = [conversation(before, side, text) for side in (0, 1)]
    rows = [PromptRow(id=side, messages=tuple(line)) for side, line in enumerate(lines)]
    return rounds.begin_turn(session, store, project, rows, [chat.first, chat.second], server, ahead).id


def conversation(before: Sequence[PlaygroundTurn], side: int, text: str) -> list[dict[str, str]]:
    """Return the chat as one model sees it, with a new message at its end.

    side: 0 for the first model, 1 for the second.
    """
    messages = []
    for turn in before:
        answer = (turn.first, turn.second)[side] or {}
        messages += [{"role": "user", "content": turn.text}, {"role": "assistant", "content": answer["text"]}]
    return [*messages, {"role": "user", "content": text}]


def vote(session: Session, project: Project, chat_id: int, turn_id: int, vote: int) -> None:
    """Store which answer is better; a later vote replaces it. In a blind chat, the vote reveals which model is which.

    Raises:
        NotFound: as `up_to`.
        Conflict: there are not two answers.
    """
    _chat, said = up_to(session, project, chat_id, turn_id)
    if said[-1].state != "answered":
        raise Conflict("There are no two answers to choose from.", "Wait for them, or ask again if that failed.")
    turn = said[-1].turn
    turn.vote, turn.voted_at = vote, datetime.now(UTC)
    session.flush()


def ask_labelers(session: Session, project: Project, actor: User, chat_id: int, turn_id: int) -> Comparison:
    """Put the two answers to a chat's first message into the labelers' queue. Repeating changes nothing.

    The actor and the chat's owner are not asked if enough others are.

    Raises:
        NotFound: as `up_to`.
        Conflict: it is not the first message, the answers are the same or missing, the prompt measures policies, or no
            rubric is published.
    """
    chat, said = up_to(session, project, chat_id, turn_id)
    turn = said[-1].turn
    if turn.comparison_id is not None:
        return session.get_one(Comparison, turn.comparison_id)
    if len(said) > 1:
        raise Conflict(
            "After the first message, the two models answer different conversations.",
            "Ask labelers about the answers to the first message.",
        )
    if turn.first is None or turn.second is None or turn.first["text"] == turn.second["text"]:
        raise Conflict("There are no two different answers.", "Ask labelers about another message.")
    rubric = gate_queries.newest_rubric(session, project.id)
    if rubric is None:
        raise Conflict("The project has no published rubric.", "Publish a rubric, so that labelers can judge by it.")
    prompt = prompts.add(session, project.id, conversation((), 0, turn.text), source="playground")
    if prompt.split != "train":
        raise Conflict("This prompt measures policies, so nobody may choose its pairs by hand.", "Ask something else.")
    a, b = (
        Completion(prompt_id=prompt.id, model_version_id=model_id, source="playground", **answer)
        for model_id, answer in ((chat.first.id, turn.first), (chat.second.id, turn.second))
    )
    session.add_all([a, b])
    session.flush()
    settings = LabelingSettings.model_validate(project.labeling)
    overlap = opening.wanted(project, settings, prompt, "train", f"playground {turn.id}")
    comparison = Comparison(
        project_id=project.id,
        prompt_id=prompt.id,
        completion_a_id=a.id,
        completion_b_id=b.id,
        rubric_id=rubric.id,
        purpose="train",
        selection=SELECTION,
        overlap=overlap.overlap,
        overlap_max=overlap.most,
    )
    session.add(comparison)
    session.flush()
    turn.comparison_id = comparison.id
    # They may know which model wrote which answer. If there are too few other labelers, they judge anyway.
    knowing = {actor.id, chat.owner.id}
    if queries.count_other_labelers(session, project.id, knowing) >= (overlap.most or overlap.overlap):
        for user_id in sorted(knowing):
            recusal.recuse(session, comparison.id, user_id)
    audit(session, actor.id, "playground.asked", project.id, comparison_id=comparison.id)
    session.flush()
    return comparison


def report_failure(
    session: Session, project: Project, actor: User, chat_id: int, turn_id: int, form: FailureForm
) -> RedTeamAttempt:
    """Store a bad answer as a rated red-team attempt, which an admin can accept. Repeating changes nothing.

    Raises:
        NotFound: as `up_to`.
        Conflict: as `_answer_of`; or an earlier answer is empty, and no prompt can hold such a conversation.
    """
    answer = _answer_of(session, project, chat_id, turn_id, form.side)
    if not all(message["content"].strip() for message in answer.messages):
        raise Conflict(
            "An earlier answer of this model is empty, so the conversation can be no prompt.",
            "Ask the same in a new chat, and report the answer there.",
        )
    return red_team.report(
        session,
        project,
        actor,
        uuid5(answer.turn.idempotency_key, f"answer {form.side}"),
        messages=answer.messages,
        answer=answer.said,
        model_version_id=answer.model.id,
        run_id=answer.turn.run_id,
        severity=form.severity,
        safety_category=form.safety_category,
    )


def correct(
    session: Session, project: Project, actor: User, chat_id: int, turn_id: int, form: CorrectionForm
) -> Demonstration:
    """Store a better answer as a demonstration, which waits for review.

    Raises:
        NotFound: as `up_to`.
        Conflict: as `_answer_of`; or exactly this demonstration exists already.
        InvalidInput: nothing is written, or nothing was changed.
    """
    answer = _answer_of(session, project, chat_id, turn_id, form.side)
    if form.text == answer.said["text"]:
        raise InvalidInput("You did not change the model's answer.", "Correct what is wrong with it.")
    prompt = prompts.add(session, project.id, answer.messages, source="playground")
    return demonstrations.write(session, project, actor, prompt, form.text)


class _Answer(NamedTuple):
    """One model's answer, and the conversation before it."""

    turn: PlaygroundTurn
    model: ModelVersion
    messages: list[dict[str, str]]
    said: dict[str, Any]


def _answer_of(session: Session, project: Project, chat_id: int, turn_id: int, side: int) -> _Answer:
    """Return one side's answer.

    Raises:
        NotFound: as `up_to`.
        Conflict: there is no answer, or using it would reveal which model a blind chat hides.
    """
    chat, said = up_to(session, project, chat_id, turn_id)
    *before, turn = (each.turn for each in said)
    answer = (turn.first, turn.second)[side]
    if answer is None:
        raise Conflict("The model has not answered yet.", "Wait for the answer.")
    if chat.is_hidden:
        raise Conflict("This chat is blind until somebody votes.", "Vote first.")
    return _Answer(turn, (chat.first, chat.second)[side], conversation(before, side, turn.text), answer)


def any_chat(session: Session, project: Project, chat_id: int, *, lock: bool = False) -> Chat:
    """Return the chat. Raise NotFound if the project has no such chat."""
    if lock and chat_id < 2**63:
        queries.lock(session, chat_id)
    found = queries.chat(session, project.id, chat_id) if chat_id < 2**63 else None
    if found is None:
        raise NotFound(f"This project has no chat {chat_id}.", "Go back to the playground.")
    return found


def up_to(session: Session, project: Project, chat_id: int, turn_id: int) -> tuple[Chat, list[Turn]]:
    """Return a chat, locked, and its turns up to the given one.

    Raises:
        NotFound: the project has no such chat, or the chat no such turn.
    """
    chat = any_chat(session, project, chat_id, lock=True)
    said = queries.turns(session, chat_id)
    place = next((i for i, turn in enumerate(said) if turn.turn.id == turn_id), None)
    if place is None:
        raise NotFound("This chat has no such message.", "Open the chat again.")
    return chat, said[: place + 1]
