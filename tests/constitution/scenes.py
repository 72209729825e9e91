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


def revised(session: Session, project: Project, critic: Judge, rubric_id: int, n: int = 1) -> Run:
    """A run that is done: of every five answers one was left unchanged and one failed."""
    spec = {"kind": "revise", "judge": critic.id, "model": critic.model, "seed": 7, "completions": list(range(n))}
    spec |= {"candidates": True, "demonstrations": True}
    run = factories.run(session, project, "revise", spec=spec, state="succeeded")
    for i in range(n):
        prompt = factories.prompt(session, project, f"Question {i}? " + "Say more about it. " * (i % 3 * 20))
        original = factories.completion(
            session, prompt, "It is like *this*.\n" * (1 + i % 4), run_id=run.id, sample_index=1
        )
        about = {"run_id": run.id, "judge_id": critic.id, "rubric_id": rubric_id, "completion_id": original.id}
        about |= {"principle": PRINCIPLES[i % 3], "critique": "It says too much. " * 9, "prompt_tokens": 200}
        about |= {"completion_tokens": 20, "ms": 900, "cost": 0.0001}
        if i % 5 == 3:
            session.add(AIRevision(**about, outcome="unchanged"))
        elif i % 5 == 4:
            session.add(AIRevision(**about, outcome="failed", error="The revision is empty"))
        else:
            text = "It is so.\n" * (1 + i % 3)
            written = factories.demonstration(session, prompt, text, state="pending", ai_revised=True)
            session.add(AIRevision(**about, outcome="revised", text=text, demonstration_id=written.id))
    session.flush()
    return run
