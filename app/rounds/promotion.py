"""The gate: a round's policy becomes the project's once the confidence sequence shows that people prefer it.

The sequence is valid after every judgment, so the check may run at any time: the worker runs it every few seconds, and
so does the start of a round. Each function works in the caller's transaction and never commits.
"""

from sqlalchemy.orm import Session

from app.artifacts import ArtifactStore
from app.models import ModelVersion, Project
from app.rounds import queries
from app.rounds.adoption import change, lost_files
from app.rounds.outcomes import people_on
from app.suites import service as suites


def waiting(session: Session) -> list[int]:
    """Return projects in which people have judged a policy that waits for them."""
    return queries.projects_with_waiting_policy(session)


def waiting_policy(session: Session, project: Project) -> ModelVersion | None:
    """Return the policy that waits for people to prefer it; None if there is none or people found it worse."""
    round_ = queries.round_with_waiting_policy(session, project.id)
    if round_ is None or round_.policy_after_id is None:
        return None
    beside = people_on(session, round_).before
    if beside and beside.said and beside.said.word == "worse":
        return None
    return session.get_one(ModelVersion, round_.policy_after_id)


def promote(session: Session, store: ArtifactStore, project: Project) -> ModelVersion | None:
    """Make the newest round's policy the project's if it waits for that and people prefer it; return it then.

    A suite on which it lost more than allowed holds it back, whatever people say; an operator may still adopt it.
    Missing files hold it back until they are restored. A policy is promoted only once, so an operator can go back to an
    earlier policy afterwards.

    Args:
        project: the caller holds its row locked.
    """
    round_ = queries.round_with_waiting_policy(session, project.id)
    if round_ is None or round_.policy_after_id is None:
        return None
    beside = people_on(session, round_).before
    people = beside and beside.said
    if people is None or people.word != "better" or suites.held_back(session, round_):
        return None
    model = session.get_one(ModelVersion, round_.policy_after_id)
    if lost_files(store, model):
        return None
    reason = (
        f"People prefer it: win rate {people.value:.2f}, 95% interval {people.low:.2f} to {people.high:.2f}, "
        f"{people.prompts} prompts."
    )
    change(session, project, model, None, reason)
    return model
