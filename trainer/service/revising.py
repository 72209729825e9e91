"""Run a constitution: a critic's endpoint criticises and revises answers.

Each outcome is stored in a transaction of its own. A run that was killed only asks about answers without an outcome.
"""

import time
from typing import Any, NamedTuple

from sqlalchemy.orm import Session, sessionmaker

from app.constitution import queries
from app.constitution import service as constitution
from app.constitution.queries import Answer
from app.domain.constitution import (
    MAX_CRITIQUE,
    critique_question,
    is_unchanged,
    principle_for,
    revision_in,
    revision_question,
)
from app.errors import InvalidInput
from app.models import Judge
from app.rounds import service as rounds
from app.specs import ReviseSpec
from trainer.service.asking import ask_all
from trainer.service.costs import cost
from trainer.service.judge_endpoint import BadAnswer, Endpoint, Reply
from trainer.service.recording import RunRecorder, patiently


class Revised(NamedTuple):
    """The outcome of an answer: `text` is the revision, `error` says why there is none. Both are None if the critic
    changed nothing."""

    critique: str
    text: str | None
    error: str | None
    replies: tuple[Reply, ...]
    ms: int


def revise_one(endpoint: Endpoint, answer: Answer, principle: str, longest: int) -> Revised:
    """Ask for a critique under the principle, then for a revision.

    Raises:
        Unavailable, Halted: as `Endpoint.ask`.
    """
    began, replies = time.monotonic(), list[Reply]()
    critique, text, error = "", None, None
    try:
        asked = critique_question(answer.prompt.messages, answer.text, principle)
        replies.append(endpoint.ask(asked))
        critique = replies[0].text.strip()[:MAX_CRITIQUE]
        if not critique:
            error = "The critique is empty"
        else:
            replies.append(endpoint.ask(revision_question(asked, critique)))
            text, error = _checked(answer.text, replies[1], longest)
    except BadAnswer as problem:
        error = str(problem)
    return Revised(critique, text, error, tuple(replies), round(1000 * (time.monotonic() - began)))


def _checked(original: str, reply: Reply, longest: int) -> tuple[str | None, str | None]:
    """Return the revision in a reply, or why it cannot be used; (None, None) if it repeats the original."""
    text = revision_in(reply.text)
    if reply.is_cut:
        return None, f"The revision is too long: it was cut after {reply.completion_tokens:,} tokens"
    if not text:
        return None, "The revision is empty"
    if len(text) > longest:
        return None, f"The revision is too long: {len(text):,} characters, and at most {longest:,} are allowed"
    return (None, None) if is_unchanged(original, text) else (text, None)


def revise_all(
    sessions: sessionmaker[Session], spec: ReviseSpec, critic: Judge, endpoint: Endpoint, recorder: RunRecorder
) -> dict[str, Any]:
    """Revise every answer of the run that has no outcome yet, and return the run's result.

    Raises:
        InvalidInput: the rubric version has no principles.
        Unavailable: as `ask_all`.
    """

    def read() -> tuple[list[str], list[Answer]]:
        with sessions() as session:
            done = queries.stored(session, recorder.run_id)
            found = queries.answers(session, critic.project_id, [id_ for id_ in spec.completions if id_ not in done])
            principles = queries.principles(session, spec.rubric)
            session.expunge_all()
        return principles, [found[id_] for id_ in spec.completions if id_ in found]

    principles, tasks = patiently(read)
    if not principles:
        raise InvalidInput("The rubric version has no principles.", "Publish a version with some, and start a new run.")

    def drawn(answer: Answer) -> str:
        return principle_for(answer.id, principles, spec.seed)

    def keep(answer: Answer, revised: Revised) -> str | None:
        prompt_tokens = sum(reply.prompt_tokens for reply in revised.replies)
        completion_tokens = sum(reply.completion_tokens for reply in revised.replies)
        values = {
            "principle": drawn(answer),
            "critique": revised.critique,
            "outcome": "failed" if revised.error else "revised" if revised.text else "unchanged",
            "text": revised.text,
            "error": revised.error,
            "served_model": revised.replies[-1].model if revised.replies else "",
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "cost": cost(critic, prompt_tokens, completion_tokens),
            "ms": revised.ms,
        }
        recorder.worked(prompt_tokens + completion_tokens)

        def write() -> None:
            with recorder.held() as (session, run):
                constitution.keep(session, run, spec, critic, answer, values)
                rounds.run_progressed(run)

        patiently(write)
        return revised.error

    before = len(spec.completions) - len(tasks)
    failed = ask_all(
        endpoint,
        tasks,
        lambda answer: revise_one(endpoint, answer, drawn(answer), spec.longest),
        keep,
        recorder,
        at_once=critic.concurrency,
        before=before,
        words="answers revised",
    )
    return {"answers": len(tasks), "failed": failed, "before": before}
