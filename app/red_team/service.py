"""Red teaming: a labeler's prompt to the current policy, its answer, the rating, and accepting attempts as prompts.

An attempt's conversation is not a prompt of the project until an admin accepts it, so nothing else reads it before.
"""

from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy.orm import Session

from app.access import gate
from app.artifacts import ArtifactStore
from app.audit import audit
from app.domain.slices import of_prompt
from app.errors import Conflict, Forbidden, InvalidInput, NotFound, TooMany
from app.models import Completion, Project, RedTeamAttempt, User
from app.prompts import service as prompts
from app.prompts.service import NewPrompt
from app.red_team import queries
from app.red_team.forms import AcceptForm, AttemptForm, RatingForm
from app.rounds import service as rounds
from app.rows import PromptRow
from app.settings import SamplingServer

# Limit on one person's attempts that wait for an answer, so that nobody fills the shared queue.
MAX_WAITING = 5
# This many attempts per person and hour jump the queue; repeated attempts never do. Otherwise one person could hold up
# rounds indefinitely.
AHEAD_AN_HOUR = 60


def send(
    session: Session,
    store: ArtifactStore,
    project: Project,
    author: User,
    form: AttemptForm,
    server: SamplingServer | None = None,
) -> RedTeamAttempt:
    """Send the prompt to the current policy. Sending the same form again returns the same attempt.

    Raises:
        InvalidInput: nothing is written, or the project has no model.
        Conflict: the key was used for something else.
        TooMany: `MAX_WAITING` of the author's attempts are waiting already.
        Forbidden: the labeler is paused in the project, was removed, or has not passed the rubric's quiz.
    """
    queries.lock_author(session, author.id)
    known = queries.by_key(session, form.idempotency_key)
    if known is not None:
        if (known.author_id, known.project_id, known.messages) != (author.id, project.id, _messages(form.text)):
            raise Conflict("This form was already sent with another text.", "Reload the page to send another attempt.")
        return known
    if not form.text:
        raise InvalidInput("Nothing is written yet.", "Write a prompt that could make the model fail.")
    if project.policy_id is None:
        raise InvalidInput("The project has no model that could answer.", "An admin can choose one in the settings.")
    gate.require(session, project, author)
    _refuse_too_many(session, author)
    attempt = RedTeamAttempt(
        project_id=project.id,
        author_id=author.id,
        messages=_messages(form.text),
        domain=form.domain,
        safety_category=form.safety_category,
        goal=form.goal,
        model_version_id=project.policy_id,
        idempotency_key=form.idempotency_key,
    )
    session.add(attempt)
    session.flush()
    ahead = queries.count_lately(session, author.id) <= AHEAD_AN_HOUR
    _ask(session, store, project, attempt, server, ahead=ahead)
    return attempt


def _refuse_too_many(session: Session, author: User) -> None:
    if queries.count_waiting(session, author.id) >= MAX_WAITING:
        raise TooMany(
            f"{MAX_WAITING} of your attempts wait for their answers.", "Send this again when the first is answered."
        )


def _messages(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _ask(
    session: Session,
    store: ArtifactStore,
    project: Project,
    attempt: RedTeamAttempt,
    server: SamplingServer | None,
    *,
    ahead: bool = False,
) -> None:
    slices = of_prompt(attempt.domain, "adversarial", attempt.safety_category, "")
    row = PromptRow(id=attempt.id, messages=tuple(attempt.messages), slices=slices)
    attempt.run_id = rounds.begin_answer(session, store, project, row, server, ahead).id
    assert project.policy_id is not None, "begin_answer has refused a project without"
    attempt.model_version_id = project.policy_id
    session.flush()


def send_again(
    session: Session,
    store: ArtifactStore,
    project: Project,
    author: User,
    attempt_id: int,
    server: SamplingServer | None = None,
) -> None:
    """Ask the current policy again if the earlier run failed. Does nothing if an answer exists or is pending.

    Raises:
        NotFound, Forbidden: no such attempt, or another person's; or the author may not work here now, as in `send`.
        TooMany: `MAX_WAITING` of the author's attempts are waiting already.
    """
    queries.lock_author(session, author.id)
    attempt = _own(session, project, author, attempt_id)
    gate.require(session, project, author)
    found = queries.attempt(session, project.id, attempt_id)
    if found is not None and found.state == "failed":
        _refuse_too_many(session, author)
        _ask(session, store, project, attempt, server)


def cancel(session: Session, project: Project, author: User, attempt_id: int) -> None:
    """Cancel the attempt's run for its author; does nothing if the answer exists. They may ask again.

    Raises:
        NotFound, Forbidden: no such attempt, or another person's.
        Conflict: it was answered at this very moment.
    """
    found = queries.attempt(session, project.id, attempt_id)
    _of_author(found.attempt if found else None, author, attempt_id)
    if found and found.run and found.state == "waiting":
        rounds.cancel_run(session, found.run, author)


def rate(session: Session, project: Project, author: User, attempt_id: int, form: RatingForm) -> None:
    """Store the author's rating. A later rating replaces it until the attempt becomes a prompt of the project.

    Raises:
        NotFound, Forbidden: no such attempt, or another person's; or the author is paused or was removed.
        Conflict: there is no answer yet, or the attempt is accepted.
    """
    attempt = _own(session, project, author, attempt_id)
    gate.require(session, project, author, begun=True)
    if attempt.answer is None:
        raise Conflict("The model has not answered yet.", "Wait for the answer. It appears automatically.")
    rating = (form.severity, form.all_tags, form.note)
    if rating == (attempt.severity, attempt.tags, attempt.note):
        return
    if attempt.prompt_id is not None:
        raise Conflict("This attempt has become a prompt of the project.", "Its rating can no longer be changed.")
    if attempt.withdrawn_at is not None:
        raise Conflict("This attempt was withdrawn with everything its author wrote.", "It stays withdrawn.")
    attempt.severity, attempt.tags, attempt.note = rating
    attempt.rated_at = datetime.now(UTC)
    session.flush()


def report(
    session: Session,
    project: Project,
    author: User,
    key: UUID,
    *,
    messages: list[dict[str, str]],
    answer: dict[str, Any],
    model_version_id: int,
    run_id: int,
    severity: int,
    safety_category: str,
) -> RedTeamAttempt:
    """Store an answer that failed elsewhere as an already rated attempt. The same key twice makes one attempt.

    Args:
        messages, answer, run_id: as the columns of `RedTeamAttempt`.
    """
    known = queries.by_key(session, key)
    if known is not None:
        return known
    attempt = RedTeamAttempt(
        project_id=project.id,
        author_id=author.id,
        messages=messages,
        safety_category=safety_category,
        model_version_id=model_version_id,
        run_id=run_id,
        answer=answer,
        severity=severity,
        rated_at=datetime.now(UTC),
        idempotency_key=key,
    )
    session.add(attempt)
    session.flush()
    return attempt


def _own(session: Session, project: Project, author: User, attempt_id: int) -> RedTeamAttempt:
    return _of_author(queries.lock(session, project.id, attempt_id), author, attempt_id)


def _of_author(attempt: RedTeamAttempt | None, author: User, attempt_id: int) -> RedTeamAttempt:
    if attempt is None:
        raise NotFound(f"This project has no attempt {attempt_id}.", "Go back to your own attempts.")
    if attempt.author_id != author.id:
        raise Forbidden("Somebody else made this attempt.", "Only its author can rate, cancel or repeat it.")
    return attempt


class Accepted(NamedTuple):
    """new: attempts that became new prompts. known: attempts whose prompt was already in the project; it stays as it
    is. unrated: attempts that cannot become prompts because they are not rated."""

    new: int
    known: int
    unrated: int


def accept(session: Session, project: Project, admin: User, form: AcceptForm) -> Accepted:
    """Make prompts from rated attempts, and store the policy's answers as responses. Repeating changes nothing."""
    new: list[int] = []
    known: list[int] = []
    unrated = 0
    for attempt in queries.lock_many(session, project.id, form.attempts):
        if attempt.prompt_id is not None or attempt.withdrawn_at is not None:
            continue
        if attempt.severity is None:
            unrated += 1
            continue
        fresh = NewPrompt(
            attempt.messages,
            split=form.split,
            domain=attempt.domain,
            difficulty="adversarial",
            safety_category=attempt.safety_category,
            source="red team",
        )
        (new if prompts.add_many(session, project.id, [fresh]) else known).append(attempt.id)
        attempt.prompt_id = prompts.add(session, project.id, attempt.messages).id
        assert attempt.answer is not None, "a rated attempt has an answer"
        session.add(
            Completion(
                prompt_id=attempt.prompt_id,
                model_version_id=attempt.model_version_id,
                run_id=attempt.run_id,
                # In the playground both models answer one message in one run.
                sample_index=queries.count_samples(session, attempt.run_id, attempt.prompt_id),
                **attempt.answer,
            )
        )
        session.flush()
    if new or known:
        audit(session, admin.id, "red_team.accepted", project.id, split=form.split, attempts=[*new, *known])
    return Accepted(len(new), len(known), unrated)
