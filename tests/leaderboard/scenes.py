"""Projects with judgments between policies."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy.orm import Session

from app.domain.pairing import Sample, evaluation_pairs
from app.models import Comparison, ModelVersion, Project, Prompt, User
from tests import factories

# As a round writes it.
(_chosen,) = evaluation_pairs([Sample(2, "new")], [[Sample(1, "old")]], limit=1, seed=0)


def pair(
    session: Session,
    project: Project,
    policies: tuple[ModelVersion | None, ModelVersion | None],
    *,
    texts: tuple[str, str] = ("Short.", "Short!"),
    tokens: tuple[int | None, int | None] = (10, 10),
    prompt: Prompt | None = None,
    **values: Any,
) -> Comparison:
    """Add a comparison of two policies' responses that counts, unless `values` changes this."""
    prompt = prompt or factories.prompt(session, project, split="heldout")
    ids = [
        factories.completion(session, prompt, text, model_version_id=policy.id if policy else None, n_tokens=n).id
        for policy, text, n in zip(policies, texts, tokens, strict=True)
    ]
    given = {"purpose": "human_eval", "selection": _chosen.selection, "overlap": 50} | values
    return factories.comparison(
        session, project, prompt=prompt, completion_a_id=ids[0], completion_b_id=ids[1], **given
    )


def judged(session: Session, comparison: Comparison, labeler: User, preference: int | None, **values: Any) -> None:
    factories.judgment(session, comparison, preference=preference, labeler_id=labeler.id, **values)


def contest(
    session: Session,
    project: Project,
    winner: ModelVersion,
    loser: ModelVersion,
    labelers: Sequence[User],
    won: int,
    lost: int,
    ties: int = 0,
    **values: Any,
) -> None:
    """Add this many judgments, each on a different prompt; labelers and sides alternate."""
    for n, preference in enumerate([-2] * won + [2] * lost + [0] * ties):
        row = pair(session, project, (winner, loser), **values)
        judged(session, row, labelers[n % len(labelers)], preference, swapped=n % 2 == 1)
