"""Constitution runs: an AI critic criticises and revises the policy's answers, and people decide about the revisions.

A revision becomes a response in a blind comparison with its original, a demonstration that waits for review, or both.
No revision is approved without a person, and each is marked (`ai_revised`). Each function works in the caller's
transaction and never commits.
"""

import secrets
from typing import Any

from sqlalchemy.orm import Session

from app.access import gate_queries
from app.audit import audit
from app.constitution import queries
from app.constitution.forms import StartForm
from app.constitution.queries import Answer
from app.demonstrations.service import digest
from app.documents import LabelingSettings
from app.domain.constitution import PROMPT_VERSION
from app.errors import Conflict, NotFound
from app.judges import queries as judges
from app.labeling.opening import wanted
from app.models import Comparison, Completion, Judge, Project, Run, User
from app.queue import enqueue_run
from app.rounds import service as rounds
from app.specs import ReviseSpec


def start(session: Session, project: Project, operator: User, form: StartForm) -> Run:
    """Enqueue a run over the current policy's newest answers to train prompts.

    Raises:
        NotFound: the project has no such critic.
        Conflict: the critic is switched off, no rubric is published, it has no principles, a run is under way, or no
            answer is left to revise.
    """
    session.refresh(project, with_for_update={"key_share": True})
    critic = judges.by_id(session, project.id, form.judge)
    if critic is None:
        raise NotFound("The project has no such judge.", "Choose one of those that the form lists.")
    if critic.off_at is not None:
        raise Conflict(f"{critic.name} is switched off.", "Switch it on, or choose another critic.")
    rubric = gate_queries.newest_rubric(session, project.id)
    if rubric is None:
        raise Conflict("The project has no published rubric.", "Publish one: its principles are the constitution.")
    if not rubric.principles:
        raise Conflict(
            f"Rubric version {rubric.version} has no principles.",
            "Write some under Constitution on the rubric's page, and publish the next version.",
        )
    if any(run.state in ("queued", "running") for run in queries.runs(session, project.id, 1)):
        raise Conflict("A constitution run is under way.", "Wait until it is done, or cancel it.")
    seed = secrets.randbelow(2**31) if form.seed is None else form.seed
    found = queries.originals(session, project, critic.id, rubric.id, form.domain, form.count, seed)
    if not found:
        raise Conflict(
            "There is no answer to revise: the current policy has answered no such train prompt, or this critic has "
            "revised all its answers.",
            "Sample responses on the Rounds page, or choose another domain or critic.",
        )
    spec = ReviseSpec(
        judge=critic.id,
        url=critic.url,
        model=critic.model,
        rubric=rubric.id,
        prompt_version=PROMPT_VERSION,
        completions=tuple(found),
        candidates=form.candidates,
        demonstrations=form.demonstrations,
        longest=form.longest,
        max_tokens=critic.max_tokens,
        seed=seed,
    )
    run = Run(project_id=project.id, kind="revise", spec=spec.model_dump(mode="json"))
    session.add(run)
    session.flush()
    enqueue_run(session, run.id)
    details = {"run": run.id, "judge": critic.id, "rubric": rubric.version, "answers": len(found), "seed": seed}
    audit(session, operator.id, "constitution.run", project.id, **details)
    return run


def resume(session: Session, run: Run, operator: User) -> None:
    """Continue a run that failed or was cancelled, where it stopped.

    Raises:
        Conflict: it has not stopped, or another run is under way.
    """
    session.refresh(session.get_one(Project, run.project_id), with_for_update={"key_share": True})
    if any(each.state in ("queued", "running") for each in queries.runs(session, run.project_id, 1)):
        raise Conflict("A constitution run is under way.", "Wait until it is done, or cancel it.")
    rounds.retry_run(session, run, operator)


def keep(session: Session, run: Run, spec: ReviseSpec, critic: Judge, answer: Answer, values: dict[str, Any]) -> None:
    """Store the outcome of an answer, and open a comparison or demonstration for its revision, once.

    Args:
        values: values of the columns of `AIRevision`, from `principle` on.
    """
    about = {"run_id": run.id, "judge_id": critic.id, "rubric_id": spec.rubric, "completion_id": answer.id}
    revision_id = queries.add(session, about | values)
    if revision_id is None or values["outcome"] != "revised":
        return
    source, text = f"AI revision by {critic.name}", values["text"]
    # The prompt may have been withdrawn or moved since the run began.
    if not queries.answers(session, run.project_id, [answer.id]):
        return
    revised_id = demonstration_id = None
    if spec.candidates:
        made = {
            "critic": critic.name,
            "model": values["served_model"] or critic.model,
            "principle": values["principle"],
        }
        revised = Completion(
            prompt_id=answer.prompt.id,
            text=text,
            run_id=run.id,
            sample_index=0,
            source=source,
            ai_revised=True,
            sampling=made,
        )
        session.add(revised)
        session.flush()
        revised_id = revised.id
        _compare(session, run, spec, answer, revised_id)
    if spec.demonstrations:
        demonstration_id = queries.add_demonstration(
            session,
            {
                "project_id": run.project_id,
                "prompt_id": answer.prompt.id,
                "text": text,
                "digest": digest(text),
                "source": source,
                "ai_revised": True,
                "rubric_id": spec.rubric,
                "completion_id": answer.id,
            },
        )
    queries.set_outcome(session, revision_id, revised_id, demonstration_id)


def _compare(session: Session, run: Run, spec: ReviseSpec, answer: Answer, revised_id: int) -> None:
    """Open a comparison of the original with the revision, like one of two samples. The desk shuffles the sides."""
    project = session.get_one(Project, run.project_id)
    settings = LabelingSettings.model_validate(project.labeling)
    asked = wanted(project, settings, answer.prompt, "train", pair=f"{answer.prompt.id}-{(answer.id, revised_id)}")
    session.add(
        Comparison(
            project_id=project.id,
            prompt_id=answer.prompt.id,
            completion_a_id=answer.id,
            completion_b_id=revised_id,
            rubric_id=spec.rubric,
            purpose="train",
            overlap=asked.overlap,
            overlap_max=asked.most,
            selection={"policy": "ai_revision"},
            priority=answer.priority,
        )
    )
    session.flush()


def cancel(session: Session, run: Run, operator: User) -> None:
    """End a run. Its stored outcomes stay."""
    rounds.cancel_run(session, run, operator)
