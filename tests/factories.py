"""Rows for tests: each function adds one row with sensible values and flushes it. It makes missing parents."""

import itertools
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from uuid import uuid4

from sqlalchemy import Connection, event, insert, select
from sqlalchemy.orm import Session

from app.models import (
    Comparison,
    Completion,
    Demonstration,
    Judgment,
    Lease,
    ModelVersion,
    Project,
    ProjectMember,
    Prompt,
    Round,
    Rubric,
    Run,
    Thumb,
    User,
)
from app.models.base import Base

_number = itertools.count(1)
Row = TypeVar("Row", bound=Base)


def _add(session: Session, row: Row) -> Row:
    session.add(row)
    session.flush()
    return row


# Most tests have one project and care about roles, not about membership. So everybody made by `user` is a member of all
# projects of the test, with the same roles. This has their roles by user id; it is emptied after each test.
roster: dict[int, list[str]] = {}


@event.listens_for(Project, "after_insert")
def _everybody_joins(_mapper: object, connection: Connection, project: Project) -> None:
    there = connection.scalars(select(User.id).where(User.id.in_(roster))).all()
    rows = [{"project_id": project.id, "user_id": id_, "roles": roster[id_]} for id_ in there]
    if rows:
        connection.execute(insert(ProjectMember), rows)


def account(session: Session, **values: Any) -> User:
    """Make a person who can sign in but is not a member of any project."""
    n = next(_number)
    return _add(session, User(**({"email": f"user{n}@example.org", "name": f"User {n}"} | values)))


def member(session: Session, project: Project, *roles: str, **values: Any) -> User:
    """Make a person who is a member of only this project."""
    added = account(session, **values)
    join(session, project, added, *roles)
    return added


def join(session: Session, project: Project, user: User, *roles: str) -> None:
    _add(session, ProjectMember(project_id=project.id, user_id=user.id, roles=list(roles)))


def user(session: Session, *roles: str, **values: Any) -> User:
    """Make a member of every project of the test, including later ones: a labeler, or a person with these roles. The
    role `administrator` makes them an administrator of the service."""
    added = account(session, is_admin="administrator" in roles, **values)
    roster[added.id] = [role for role in roles or ("labeler",) if role != "administrator"]
    if not roster[added.id]:
        del roster[added.id]
        return added
    for each in session.scalars(select(Project)):
        join(session, each, added, *roster[added.id])
    return added


def project(session: Session, **values: Any) -> Project:
    n = next(_number)
    return _add(session, Project(**({"slug": f"project-{n}", "name": f"Project {n}"} | values)))


def rubric(session: Session, project: Project, *, version: int | None = 1, **values: Any) -> Rubric:
    published = datetime.now(UTC) if version else None
    given = {"guideline": "Prefer the better answer.", "version": version, "published_at": published} | values
    return _add(session, Rubric(project_id=project.id, **given))


def published_rubric(session: Session, project: Project) -> Rubric:
    """Return the project's newest published rubric; make one if there is none."""
    newest = select(Rubric).where(Rubric.project_id == project.id, Rubric.version.is_not(None))
    return session.scalars(newest.order_by(Rubric.version.desc())).first() or rubric(session, project)


def prompt(session: Session, project: Project, content: str | None = None, **values: Any) -> Prompt:
    n = next(_number)
    messages = [{"role": "user", "content": content or f"Question {n}?"}]
    return _add(session, Prompt(**({"project_id": project.id, "messages": messages, "digest": uuid4().hex} | values)))


def completion(session: Session, prompt: Prompt, text: str | None = None, **values: Any) -> Completion:
    return _add(session, Completion(prompt_id=prompt.id, text=text or f"Answer {next(_number)}.", **values))


def demonstration(session: Session, prompt: Prompt, text: str | None = None, **values: Any) -> Demonstration:
    given = {"text": text or f"A good answer {next(_number)}.", "digest": uuid4().hex, "state": "approved"} | values
    return _add(session, Demonstration(project_id=prompt.project_id, prompt_id=prompt.id, **given))


def thumb(session: Session, completion: Completion, *, liked: bool, **values: Any) -> Thumb:
    labeler_id = values.pop("labeler_id", None) or user(session).id
    project_id = session.get_one(Prompt, completion.prompt_id).project_id
    about = {"project_id": project_id, "completion_id": completion.id, "labeler_id": labeler_id}
    return _add(session, Thumb(liked=liked, **about, **values))


def comparison(session: Session, project_: Project | None = None, **values: Any) -> Comparison:
    """Make a comparison with its prompt and two completions; you can give `texts=(a, b)` and `prompt=`."""
    project_ = project_ or project(session)
    prompt_ = values.pop("prompt", None) or prompt(session, project_)
    text_a, text_b = values.pop("texts", (None, None))
    given = {
        "project_id": project_.id,
        "prompt_id": prompt_.id,
        "completion_a_id": completion(session, prompt_, text_a).id,
        "completion_b_id": completion(session, prompt_, text_b).id,
        "rubric_id": published_rubric(session, project_).id,
        "purpose": "train",
        "overlap": project_.overlap or 2,
    } | values
    return _add(session, Comparison(**given))


def judgment(session: Session, comparison: Comparison, *, preference: int | None, **values: Any) -> Judgment:
    labeler_id = values.pop("labeler_id", None) or user(session).id
    given = {"rubric_id": comparison.rubric_id, "swapped": False, "duration_ms": 5000} | values
    row = Judgment(comparison_id=comparison.id, labeler_id=labeler_id, preference=preference, **given)
    return _add(session, row)


def lease(session: Session, comparison: Comparison, **values: Any) -> Lease:
    labeler_id = values.pop("labeler_id", None) or user(session).id
    given = {"swapped": False, "expires_at": datetime.now(UTC) + timedelta(minutes=15)} | values
    return _add(session, Lease(comparison_id=comparison.id, labeler_id=labeler_id, **given))


def model(session: Session, project: Project, role: str = "policy", **values: Any) -> ModelVersion:
    given = {"role": role, "name": f"model-{next(_number)}", "base": "models/none"} | values
    return _add(session, ModelVersion(project_id=project.id, **given))


def round_(session: Session, project: Project, **values: Any) -> Round:
    given = {"number": next(_number), "state": "done", "algorithm": "dpo", "config": {}} | values
    given.setdefault("policy_before_id", model(session, project).id)
    given.setdefault("reference_id", given["policy_before_id"])
    return _add(session, Round(project_id=project.id, **given))


def run(session: Session, project: Project, kind: str = "dpo", **values: Any) -> Run:
    return _add(session, Run(project_id=project.id, kind=kind, **({"spec": {}} | values)))
