"""Automatic rounds: an operator's rule says when the next round starts. Off until somebody sets a rule.

The worker checks every few seconds. A rule may require a second operator's approval; then nothing starts before it. In
both cases the round is an ordinary one, with the settings of the newest round that trained on comparisons, and its
policy passes the same gate as any other.
"""

import logging
from collections.abc import Iterator
from typing import Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from app.artifacts import ArtifactStore
from app.audit import audit
from app.automatic import queries
from app.errors import Conflict, Forbidden, PrefloopError
from app.insights import service as insights
from app.models import Project, Round, User
from app.monitors import views as monitors
from app.monitors.views import Watched
from app.rounds import service as rounds
from app.rounds.forms import RoundConfig
from app.specs import Generation

log = logging.getLogger(__name__)

FEWEST_JUDGMENTS = 20


class Rule(BaseModel):
    """The conditions for starting a round automatically; all must hold. Stored in `Project.automatic`.

    Attributes:
        judgments: this many were given since the last round read them.
        agreement: labelers agree in at least this share of pairs of judgments; None: not checked.
        fine: no monitor asks for a look at the newest round.
        approval: another operator than the one who set the rule must approve.
        set_by: who set it. Rounds start in their name, as long as they are an operator of the project.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    judgments: Annotated[int, Field(ge=FEWEST_JUDGMENTS, le=1_000_000)]
    agreement: Annotated[float | None, Field(ge=0, le=1)] = None
    fine: bool = True
    approval: bool = False
    set_by: int


class Condition(NamedTuple):
    """One condition of a rule in words, and whether it holds now."""

    words: str
    holds: bool


class Standing(NamedTuple):
    """The state of a project's rule.

    Attributes:
        setter: who set it; None if they are no longer an operator of the project.
        basis: the round whose settings the next one takes; None: the recommended settings.
    """

    rule: Rule
    setter: User | None
    basis: Round | None
    conditions: list[Condition]

    @property
    def is_due(self) -> bool:
        return all(condition.holds for condition in self.conditions)


def set_rule(session: Session, project: Project, operator: User, rule: Rule | None) -> None:
    """Set a project's rule, or remove it. Audited."""
    project.automatic = rule.model_dump(mode="json") if rule else None
    audit(session, operator.id, "automatic_rounds.set", project.id, rule=project.automatic)
    session.flush()


def standing(session: Session, store: ArtifactStore, project: Project, *, at_length: bool = True) -> Standing | None:
    """Return the current state of the project's rule; None if it has none.

    Args:
        at_length: check all conditions; otherwise stop at the first that does not hold.
    """
    if project.automatic is None:
        return None
    rule = Rule.model_validate(project.automatic)
    setter = queries.operator(session, project.id, rule.set_by)
    basis = queries.newest_training_round(session, project.id)
    conditions = []
    for condition in _conditions(session, store, project, rule, setter, basis):
        conditions.append(condition)
        if not (at_length or condition.holds):
            break
    return Standing(rule, setter, basis, conditions)


def _conditions(
    session: Session, store: ArtifactStore, project: Project, rule: Rule, setter: User | None, basis: Round | None
) -> Iterator[Condition]:
    """Yield the conditions, cheap ones first."""
    yield Condition("no round is under way", not rounds.is_busy(session, project))
    if setter is None:
        yield Condition("the person who set this rule is no longer an operator of the project", False)
    try:
        config = config_of(project, basis)
    except ValidationError:  # an earlier version took them
        number = basis.number if basis else 0
        yield Condition(f"settings of round {number} are no longer accepted: start a round by hand once", False)
        return
    problem = rounds.cannot_start(session, project, config) or rounds.lost_policy(session, store, project)
    yield Condition(problem.message if problem else "there is enough to train on", problem is None)
    # also counts failed rounds, so they are not retried at once
    new = rounds.new_judgments(session, project, tried_too=True)
    yield Condition(f"{new:,} of {rule.judgments:,} new judgments", new >= rule.judgments)
    if rule.agreement is not None:
        share = insights.live(session, project.id).figures.percent.value
        said = "an unknown share" if share is None else f"{share:.0%}"
        words = f"labelers agree in {said} of pairs of judgments; the rule needs {rule.agreement:.0%}"
        yield Condition(words, share is not None and share >= rule.agreement)
    watched = _watched(session, project, basis)
    stopped = [raised.monitor.label.lower() for raised in watched.alarms if raised.stopped] if watched and basis else []
    if stopped and basis:
        # Whatever the rule asks for: somebody who lets a monitor end a run wants to read why before the next one.
        words = (
            f"a monitor stopped round {basis.number}: {', '.join(stopped)}; read why and start the next one yourself"
        )
        yield Condition(words, False)
    if rule.fine:
        looks = [monitor.label.lower() for monitor in watched.not_wanted] if watched else []
        said = "no monitor asks for a look at the newest round"
        if watched and looks:
            said = f"monitors ask for a look at round {watched.round.number}: {', '.join(looks)}"
        elif watched and watched.looks:
            said = f"what monitors found in round {watched.round.number} was reviewed as wanted"
        yield Condition(said, not looks)


def _watched(session: Session, project: Project, newest: Round | None) -> Watched | None:
    """Return what the monitors say of the newest round, its run included."""
    return next((each for each in monitors.rounds(session, project) if newest and each.round.id == newest.id), None)


def config_of(project: Project, basis: Round | None) -> RoundConfig:
    if basis is not None:
        return RoundConfig.of(basis.config)
    return RoundConfig.defaults(RoundConfig().algorithm, Generation.model_validate(project.generation))


def approve(session: Session, store: ArtifactStore, project: Project, operator: User) -> Round:
    """Start the round that waits for approval, in the name of a second operator.

    Raises:
        Conflict: there is no rule, it needs no approval, or it does not hold now.
        Forbidden: it is the operator's own rule.
        InvalidInput: as `rounds.start`.
    """
    found = standing(session, store, project)
    if found is None or not found.rule.approval:
        raise Conflict("No automatic round waits for approval.", "Reload the page: somebody changed the rule.")
    if found.rule.set_by == operator.id:
        raise Forbidden("You set this rule yourself.", "Another operator of the project must approve its rounds.")
    if not found.is_due:
        raise Conflict("The rule's conditions no longer hold.", "The page says what is missing.")
    return _start(session, store, project, operator, found)


def start_due(sessions: sessionmaker[Session], store: ArtifactStore) -> list[tuple[str, int]]:
    """Start rounds whose rules hold and need no approval; return (project's name, round's number).

    Commits a transaction for each project. If a round cannot start, the page says why. A fault in one project does not
    stop the others.
    """
    started = []
    with sessions() as session:
        ids = queries.projects_with_rule(session)
    for project_id in ids:
        with sessions() as session:
            try:
                project = session.get_one(Project, project_id)
                found = standing(session, store, project, at_length=False)
                if found is None or found.rule.approval or not found.is_due or found.setter is None:
                    continue
                round_ = _start(session, store, project, found.setter, found)
                session.commit()
                started.append((project.name, round_.number))
            except PrefloopError:  # somebody has just started another round or changed the rule
                session.rollback()
            except SQLAlchemyError:
                raise
            except Exception:
                log.exception("Whether project %d is due for a round cannot be told; going on.", project_id)
                session.rollback()
    return started


def _start(session: Session, store: ArtifactStore, project: Project, operator: User, found: Standing) -> Round:
    round_ = rounds.start(session, store, project, operator, config_of(project, found.basis))
    audit(
        session,
        operator.id,
        "automatic_rounds.started",
        project.id,
        number=round_.number,
        rule=found.rule.model_dump(mode="json"),
        because=[condition.words for condition in found.conditions],
    )
    return round_
