"""Prompts that need an answer, and forms as the pages send them."""

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.demonstrations.forms import AnswerForm, DecisionForm
from app.demonstrations.service import seen
from app.models import Demonstration, DemonstrationTask, Project, Prompt
from tests import factories


def task(session: Session, project: Project, question: str | None = None, **values: Any) -> DemonstrationTask:
    prompt = values.pop("prompt", None) or factories.prompt(session, project, question)
    row = DemonstrationTask(project_id=project.id, prompt_id=prompt.id, **values)
    session.add(row)
    session.flush()
    return row


def answer(task_: DemonstrationTask, text: str = "A good answer.", **values: Any) -> AnswerForm:
    return AnswerForm.model_validate({"prompt_id": task_.prompt_id, "text": text} | values)


def decision(demonstration: Demonstration, text: str | None = None, note: str = "") -> DecisionForm:
    return DecisionForm(seen=seen(demonstration), text=demonstration.text if text is None else text, note=note)


def demonstrations(session: Session) -> list[Demonstration]:
    session.expire_all()
    return list(session.scalars(select(Demonstration).order_by(Demonstration.id)))


def tasks(session: Session) -> list[DemonstrationTask]:
    session.expire_all()
    return list(session.scalars(select(DemonstrationTask).order_by(DemonstrationTask.id)))


def prompt_of(session: Session, demonstration: Demonstration) -> Prompt:
    return session.get_one(Prompt, demonstration.prompt_id)
