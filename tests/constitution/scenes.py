"""Projects whose policy has answered train prompts, and a critic."""

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.constitution import service
from app.constitution.forms import StartForm
from app.models import AIRevision, Completion, Judge, Project, Run
from tests import factories
from tests.judges.scenes import judge

PRINCIPLES = ("Be kind.", "Be short.", "Be true.")


class Scene:
    def __init__(self, session: Session, at: str = "http://127.0.0.1:9", model: str = "good", **values: Any) -> None:
        self.session = session
        self.project: Project = factories.project(session)
        self.policy = factories.model(session, self.project, name="policy-1")
        self.project.policy_id = self.policy.id
        self.rubric = factories.rubric(session, self.project, principles=[{"text": each} for each in PRINCIPLES])
        self.operator = factories.user(session, "operator")
        self.critic: Judge = judge(session, self.project, at, model, **values)
        self.sampling = factories.run(session, self.project, "sample", state="succeeded")

    def answers(self, n: int, question: str = "", **tags: Any) -> list[Completion]:
        """The policy's answers to new prompts."""
        made = []
        for i in range(n):
            prompt = factories.prompt(self.session, self.project, f"Question {i}? {question}", **tags)
            about = {"model_version_id": self.policy.id, "run_id": self.sampling.id, "sample_index": 0}
            made.append(factories.completion(self.session, prompt, f"Answer {i}.", **about))
        return made

    def start(self, **values: Any) -> Run:
        form = StartForm(**{"judge": self.critic.id, "candidates": True, "seed": 7} | values)
        run = service.start(self.session, self.project, self.operator, form)
        self.session.commit()
        return run

    def rows(self) -> dict[int, AIRevision]:
        """By original."""
        self.session.expire_all()
        return {row.completion_id: row for row in self.session.scalars(select(AIRevision))}
