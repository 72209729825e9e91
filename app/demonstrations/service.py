"""Demonstrations, from asking for them to the answers that training reads: asking, writing, reviewing.

An answer is never lost because time ran out: an expired task still accepts it unless somebody else took the task.
"""

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Literal, NamedTuple

from sqlalchemy.orm import Session

from app.access import gate, gate_queries
from app.audit import audit
from app.demonstrations import asking_queries, queries
from app.demonstrations.forms import AnswerForm, AskForm, DecisionForm, RevisionForm
from app.demonstrations.queries import Desk, ProjectTasks
from app.errors import Conflict, Forbidden, Gone, InvalidInput, NotFound
from app.form_fields import as_typed
from app.models import Demonstration, DemonstrationEvent, Project, Prompt, User

# Writing takes longer than choosing, so a prompt is held for this many lease times of the project.
LEASES = 4

IdleReason = Literal["nothing", "skipped", "taken", "paused", "removed", "quiz"]


class Idle(NamedTuple):
    """Why there is nothing to write.

    nothing: no prompt needs an answer. skipped: only skipped prompts are left. taken: others are writing for the last
    ones. paused, removed: the labeler gets no tasks here; `message` says why. quiz: they have not passed the rubric's
    quiz.
    """

    reason: IdleReason
    message: str = ""


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def seen(demonstration: Demonstration) -> str:
    """Return the state that a form sends back, so that nobody decides on a text they have not read."""
    return f"{demonstration.state}:{demonstration.digest}"


# ---- writing ---------------------------------------------------------------------------------------------------------


def next_task(session: Session, project: Project, labeler: User, *, skipped: bool = False) -> Desk | None:
    """Return the labeler's current task, so a second tab or a reload shows the same one; otherwise the next one.

    Args:
        skipped: include prompts they have skipped if no other is left.
    """
    gate_queries.lock_labeler(session, labeler.id)
    closed = gate.closed(session, project, labeler)
    if closed and closed.reason != "quiz":
        queries.give_back(session, project.id, labeler.id)
        return None
    task_id = _renew(session, project, labeler)
    if task_id is None and closed:  # a task given before a newer quiz may be finished, but no new task is given
        return None
    for again in (False, True) if skipped else (False,):
        if task_id is None:
            task_id = queries.claim(session, project.id, labeler.id, _lasting(project), skipped=again)
    return queries.desk(session, task_id) if task_id is not None else None


def sample_on_desk(session: Session, project: Project, labeler: User, task_id: int | None) -> str | None:
    """Return the sample that the labeler's task starts from, if it has one and is still theirs. Extends their hold on
    it.

    Raises:
        Forbidden: the labeler is paused or was removed.
    """
    gate.require(session, project, labeler, begun=True)
    held = _renew(session, project, labeler)
    return queries.desk(session, held).sample if held is not None and held == task_id else None


def _renew(session: Session, project: Project, labeler: User) -> int | None:
    """Extend the labeler's hold on their task in this project; return its id, or None."""
    return queries.renew(session, project.id, labeler.id, _lasting(project))


def _lasting(project: Project) -> timedelta:
    return timedelta(minutes=project.lease_minutes * LEASES)


def idle(session: Session, project: Project, labeler: User) -> Idle:
    """Return why `next_task` gave nothing."""
    if closed := gate.closed(session, project, labeler):
        return Idle(*closed)
    waiting = queries.waiting(session, project.id, labeler.id)
    return Idle("skipped" if waiting.skipped else "taken" if waiting.total else "nothing")


def submit(session: Session, project: Project, labeler: User, task_id: int, form: AnswerForm) -> Demonstration:
    """Submit an answer, which then waits for review. Sending the same form again changes nothing.

    Raises:
        Forbidden: the labeler is paused or was removed, or was not given the task and has not passed the quiz.
        InvalidInput: nothing was written.
        Gone: somebody else took the task after its time ran out or has already answered, or it was withdrawn.
        Conflict: exactly this answer exists already.
    """
    gate_queries.lock_labeler(session, labeler.id)
    if not form.text.strip():
        raise InvalidInput("Nothing is written yet.", "Write the answer, or skip this prompt.")
    found = queries.lock_task(session, project.id, task_id)
    if found is None:
        sent = queries.with_text(session, form.prompt_id, digest(form.text))
        if sent is not None and sent.author_id == labeler.id:
            return sent
    gate.require(session, project, labeler, begun=found is None or found.task.labeler_id == labeler.id)
    if found is None:
        raise Gone(
            "This prompt no longer needs an answer: somebody has written one, or the prompt was withdrawn.",
            "Your text is kept: copy it if you need it elsewhere.",
        )
    task = found.task
    if task.labeler_id != labeler.id and not found.is_free:
        raise Gone(
            "Your time for this prompt ran out and somebody else is writing for it now.",
            "Your text is kept: copy it if you need it elsewhere.",
        )
    _refuse_double(session, task.prompt_id, form.text)
    has_rubric = form.rubric_id is not None and queries.has_rubric(session, project.id, form.rubric_id)
    demonstration = Demonstration(
        project_id=project.id,
        prompt_id=task.prompt_id,
        text=form.text,
        digest=digest(form.text),
        author_id=labeler.id,
        rubric_id=form.rubric_id if has_rubric else None,
        completion_id=task.completion_id,
        duration_ms=form.duration_ms,
    )
    session.add(demonstration)
    session.delete(task)
    session.flush()
    return demonstration


def write(session: Session, project: Project, author: User, prompt: Prompt, text: str) -> Demonstration:
    """Submit an answer to a prompt without a task; it waits for review.

    Raises:
        InvalidInput: nothing is written.
        Conflict: exactly this answer exists already.
    """
    if not text.strip():
        raise InvalidInput("Nothing is written yet.", "Write the answer.")
    _refuse_double(session, prompt.id, text)
    demonstration = Demonstration(
        project_id=project.id, prompt_id=prompt.id, text=text, digest=digest(text), author_id=author.id
    )
    session.add(demonstration)
    session.flush()
    return demonstration


def _refuse_double(session: Session, prompt_id: int, text: str, own_id: int | None = None) -> None:
    same = queries.with_text(session, prompt_id, digest(text))
    if same is not None and same.id != own_id:
        raise Conflict(
            f"This exact answer to this prompt already exists and is {same.state}.",
            "Write a different answer, or skip the prompt.",
        )


def skip(session: Session, project: Project, labeler: User, task_id: int, reason: str) -> None:
    """Give a task back. It comes last for this labeler, and admins see the reason. Repeating changes nothing."""
    gate_queries.lock_labeler(session, labeler.id)
    found = queries.lock_task(session, project.id, task_id)
    if found is None or found.task.labeler_id != labeler.id:
        return
    task = found.task
    task.skips = [each for each in task.skips if each["labeler"] != labeler.id] + [
        {"labeler": labeler.id, "reason": reason}
    ]
    task.labeler_id = task.expires_at = None
    session.flush()


def revise(session: Session, project: Project, author: User, demonstration_id: int, form: RevisionForm) -> None:
    """Replace the text of a demonstration that was rejected or not reviewed yet; only its author may.

    Raises:
        NotFound, Forbidden: no such demonstration, or another person's; or the author is paused or was removed.
        Conflict: it was decided on in the meantime, or is approved.
        InvalidInput: the text is empty, or a rejected text is unchanged.
    """
    demonstration = _locked(session, project, demonstration_id)
    if demonstration.author_id != author.id:
        raise Forbidden("Somebody else wrote this demonstration.", "Only its author can revise it.")
    gate.require(session, project, author, begun=True)
    if not form.text.strip():
        raise InvalidInput("Nothing is written.", "Write the answer, or leave the page to keep the answer you sent.")
    is_same = demonstration.digest == digest(form.text)
    if is_same and demonstration.state == "pending":
        return
    if demonstration.state in ("approved", "withdrawn") or seen(demonstration) != form.seen:
        raise Conflict(
            f"This demonstration was {demonstration.state} since you opened it.", "Your text is kept on the page."
        )
    if is_same:
        raise InvalidInput("The text is the one that was rejected.", "Change it as the reviewer's note asks.")
    _refuse_double(session, demonstration.prompt_id, form.text, demonstration.id)
    _remember(session, demonstration, author, "revised", demonstration.text)
    demonstration.text, demonstration.digest, demonstration.written = form.text, digest(form.text), None
    demonstration.state = "pending"
    audit(session, author.id, "demonstration.revised", project.id, demonstration_id=demonstration.id)
    session.flush()


def projects_with_tasks(session: Session, labeler: User) -> list[ProjectTasks]:
    """Return projects with prompts that this labeler could write for, perhaps after a quiz."""
    found = queries.projects_with_tasks(session, labeler.id)
    return [each for each in found if not gate.closed(session, each.project, labeler, begun=True)]


# ---- reviewing -------------------------------------------------------------------------------------------------------


def approve(session: Session, project: Project, reviewer: User, demonstration_id: int, form: DecisionForm) -> None:
    """Approve a demonstration: fine-tuning reads it from now on. If the reviewer edited it, the author's text is kept
    too.

    Raises:
        NotFound: no such demonstration in this project.
        Conflict: somebody decided on it or its author changed it since the page was opened, or exactly the edited text
            exists already.
        InvalidInput: the text is empty.
    """
    demonstration = _as_seen(session, project, demonstration_id, form)
    if not form.text.strip():
        raise InvalidInput("The text is empty.", "Reject the demonstration if no part of it is useful.")
    before = demonstration.text
    if form.text != as_typed(demonstration.text):
        _refuse_double(session, demonstration.prompt_id, form.text, demonstration.id)
        written = demonstration.text if demonstration.written is None else demonstration.written
        demonstration.written = None if form.text == written else written
        demonstration.text, demonstration.digest = form.text, digest(form.text)
    _decide(session, project, reviewer, demonstration, "approved", form.note, before)


def reject(session: Session, project: Project, reviewer: User, demonstration_id: int, form: DecisionForm) -> None:
    """Reject a demonstration: nothing reads it. Its author sees the note and can send a better text.

    Raises:
        NotFound, Conflict: as `approve`.
        InvalidInput: there is no note.
    """
    demonstration = _as_seen(session, project, demonstration_id, form)
    if not form.note:
        raise InvalidInput("Rejecting needs a note.", "Say in a sentence what should be different.")
    _decide(session, project, reviewer, demonstration, "rejected", form.note, demonstration.text)


def _decide(
    session: Session, project: Project, reviewer: User, demonstration: Demonstration, state: str, note: str, before: str
) -> None:
    _remember(session, demonstration, reviewer, state, before, note)
    demonstration.state, demonstration.review_note = state, note
    demonstration.reviewer_id, demonstration.reviewed_at = reviewer.id, datetime.now(UTC)
    details = {"demonstration_id": demonstration.id, "edited": demonstration.written is not None, "note": note}
    audit(session, reviewer.id, f"demonstration.{state}", project.id, **details)
    session.flush()


def _remember(
    session: Session, demonstration: Demonstration, actor: User, action: str, before: str, note: str = ""
) -> None:
    """Record an event with the text before it."""
    done = {"demonstration_id": demonstration.id, "actor_id": actor.id, "action": action}
    session.add(DemonstrationEvent(**done, note=note, text=before))


def _locked(session: Session, project: Project, demonstration_id: int) -> Demonstration:
    demonstration = queries.lock(session, project.id, demonstration_id)
    if demonstration is None:
        raise NotFound(f"This project has no demonstration {demonstration_id}.", "Go back to the list.")
    return demonstration


def _as_seen(session: Session, project: Project, demonstration_id: int, form: RevisionForm) -> Demonstration:
    demonstration = _locked(session, project, demonstration_id)
    if seen(demonstration) != form.seen:
        raise Conflict(
            f"This demonstration has changed since you opened it; it is {demonstration.state} now.",
            "Nothing was changed. Open it again to see its present state.",
        )
    if demonstration.state == "withdrawn":
        raise Conflict("This demonstration was withdrawn with everything its author wrote.", "It stays withdrawn.")
    return demonstration


# ---- asking ----------------------------------------------------------------------------------------------------------


def ask(session: Session, project: Project, admin: User, wish: AskForm) -> int:
    """Open a task for each of `wish.count` matching prompts; return how many. Sending the same form again adds none.

    Raises:
        InvalidInput: fewer prompts match than were asked for.
    """
    asking_queries.lock_project(session, project)
    if wish.key is not None and asking_queries.was_asked(session, project.id, str(wish.key)):
        return wish.count
    eligible = asking_queries.count_eligible(session, project, wish)
    if eligible < wish.count:
        raise InvalidInput(
            f"Only {eligible:,} prompts match, not {wish.count:,}.",
            "Ask for fewer, or remove some filters.",
        )
    n = asking_queries.add_tasks(session, project, wish)
    audit(session, admin.id, "demonstration.asked", project.id, **wish.model_dump(mode="json"))
    session.flush()
    return n


def withdraw(session: Session, project: Project, admin: User, task_id: int | None) -> int:
    """Withdraw one task, or all tasks that nobody is writing for now; return how many."""
    n = asking_queries.remove_tasks(session, project.id, task_id)
    if n:
        audit(session, admin.id, "demonstration.withdrawn", project.id, task_id=task_id, count=n)
    return n
