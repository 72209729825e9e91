"""SQL of sampled responses side by side: a page of prompts, and what each policy last answered."""

from typing import NamedTuple

from sqlalchemy import exists, select
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.orm import Session

from app.models import Completion, ModelVersion, Prompt

PROMPTS = 10  # a page
POLICIES = 4  # beside each other


class Sampled(NamedTuple):
    """A prompt with the newest response of each policy, by the policy's id; those that have none are left out."""

    prompt: Prompt
    answers: dict[int, Completion]


class Page(NamedTuple):
    """policies: those beside each other, oldest first: the first that answered, and the newest. following: the `after`
    of the next page; none at the end."""

    rows: list[Sampled]
    policies: list[ModelVersion]
    following: int | None


def side_by_side(session: Session, project_id: int, split: str | None, after: int) -> Page:
    """Prompts that policies have answered, in the order they came, after the prompt with this id."""
    by_a_policy = Completion.run_id.is_not(None), Completion.model_version_id.is_not(None)
    sampled = exists().where(Completion.prompt_id == Prompt.id, *by_a_policy)
    found = select(Prompt).where(Prompt.project_id == project_id, Prompt.id > after, sampled).order_by(Prompt.id)
    if split:
        found = found.where(Prompt.split == split)
    prompts = list(session.scalars(found.limit(PROMPTS + 1)))
    following = prompts[PROMPTS - 1].id if len(prompts) > PROMPTS else None
    prompts = prompts[:PROMPTS]
    by_policy = Completion.prompt_id, Completion.model_version_id
    newest = (
        select(Completion)
        .where(Completion.prompt_id.in_([prompt.id for prompt in prompts]))
        .where(*by_a_policy)
        .ext(distinct_on(*by_policy))
        .order_by(*by_policy, Completion.id.desc())
    )
    answers: dict[int, dict[int, Completion]] = {prompt.id: {} for prompt in prompts}
    for answer in session.scalars(newest):
        if answer.model_version_id is not None:
            answers[answer.prompt_id][answer.model_version_id] = answer
    ids = sorted({id_ for each in answers.values() for id_ in each})
    shown = [*ids[:1], *ids[1:][-(POLICIES - 1) :]]
    policies = list(session.scalars(select(ModelVersion).where(ModelVersion.id.in_(shown)).order_by(ModelVersion.id)))
    return Page([Sampled(prompt, answers[prompt.id]) for prompt in prompts], policies, following)
