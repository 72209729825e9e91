"""Automatic rounds: an operator's rule says when the next round starts. Off until somebody sets one.

The worker looks every few seconds. A rule may ask for the word of a second operator; then nothing starts until one of
them approves. Either way the round is an ordinary one, with the settings of the newest round that trained on
comparisons, and its policy passes the same gate as any other.
"""

from collections.abc import Iterator
from typing import Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.orm import Session, sessionmaker

from app.artifacts import ArtifactStore
from app.audit import audit
from app.automatic import queries
from app.errors import Conflict, Forbidden, PrefloopError
from app.insights import service as insights
from app.models import Project, Round, User
from app.monitors import views as monitors
from app.rounds import service as rounds
from app.rounds.forms import RoundConfig
from app.specs import Generation

FEWEST_JUDGMENTS = 20


class Rule(BaseModel):
    """When a round starts by itself: all of it must hold. What `Project.automatic` stores.

    Attributes:
        judgments: so many were given since the last round read.
        agreement: the project's labelers agree in at least this share of pairs of judgments; none: it is not asked.
        fine: no monitor asks for a look at the newest round.
        approval: it waits for the word of another operator than the one who set the rule.
        set_by: who set it. Rounds start in their name, as long as they are an operator of the project.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    judgments: Annotated[int, Field(ge=FEWEST_JUDGMENTS, le=1_000_000)]
    agreement: Annotated[float | None, Field(ge=0, le=1)] = None
    fine: bool = True
    approval: bool = False
    set_by: int


class Condition(NamedTuple):
    """A part of a rule, in words, and whether it holds now."""

    words: str
    holds: bool


class Standing(NamedTuple):
    """How a project's rule stands.

    Attributes:
        setter: who set it; none where they are no longer an operator of the project.
        basis: the round whose settings the next one takes; none: the recommended settings.
    """

    rule: Rule
    setter: User | None
    basis: Round | None
    conditions: list[Condition]

    @property
    def is_due(self) -> bool:
        return all(condition.holds for condition in self.conditions)


def set_rule(session: Session, project: Project, operator: User, rule: Rule | None) -> None:
    """Sets a project's rule, or takes it away. Audited."""
    project.automatic = rule.model_dump(mode="json") if rule else None
    audit(session, operator.id, "automatic_rounds.set", project.id, rule=project.automatic)
    session.flush()


def standing(session: Session, project: Project, *, at_length: bool = True) -> Standing | None:
    """How the project's rule stands now; none where it has none.

    Args:
        at_length: all conditions are looked at; else none after the first that does not hold.
    """
    if project.automatic is None:
        return None
    rule = Rule.model_validate(project.automatic)
    setter = queries.operator(session, project.id, rule.set_by)
    basis = queries.newest_training_round(session, project.id)
    conditions = []
    for condition in _conditions(session, project, rule, setter, basis):
        conditions.append(condition)
        if not (at_length or condition.holds):
            break
    return Standing(rule, setter, basis, conditions)


def _conditions(
    session: Session, project: Project, rule: Rule, setter: User | None, basis: Round | None
) -> Iterator[Condition]:
    """The cheap ones first."""
    yield Condition("no round is under way", not rounds.is_busy(session, project))
    if setter is None:
        yield Condition("the person who set this rule is no longer an operator of the project", False)
    problem = rounds.cannot_start(session, project, config_of(project, basis))
    yield Condition(problem.message if problem else "there is enough to train on", problem is None)
    new = rounds.new_judgments(session, project, tried_too=True)  # what failed is not tried again at once
    yield Condition(f"{new:,} of {rule.judgments:,} new judgments", new >= rule.judgments)
    if rule.agreement is not None:
        share = insights.live(session, project.id).figures.percent.value
        said = "an unknown share" if share is None else f"{share:.0%}"
        words = f"labelers agree in {said} of pairs of judgments; the rule needs {rule.agreement:.0%}"
        yield Condition(words, share is not None and share >= rule.agreement)
    if rule.fine:
        looks = _looks(session, project, basis)
        said = f"monitors ask for a look at round {basis.number}: {', '.join(looks)}" if basis and looks else ""
        yield Condition(said or "no monitor asks for a look at the newest round", not looks)


def _looks(session: Session, project: Project, newest: Round | None) -> list[str]:
    """What the monitors of the newest round ask people to look at."""
    watched = next((each for each in monitors.rounds(session, project) if newest and each.round.id == newest.id), None)
    found = watched.by_monitor.values() if watched else ()
    return [finding.monitor.label.lower() for finding in found if finding.state == "look"]


def config_of(project: Project, basis: Round | None) -> RoundConfig:
    if basis is not None:
        return RoundConfig.of(basis.config)
    return RoundConfig.defaults(RoundConfig().algorithm, Generation.model_validate(project.generation))


def approve(session: Session, store: ArtifactStore, project: Project, operator: User) -> Round:
    """Starts the round that a rule waits to start, in the name of a second operator.

    Raises:
        Conflict: there is no rule, it asks nobody, or it does not hold now.
        Forbidden: it is the operator's own rule.
        InvalidInput: as `rounds.start`.
    """
    found = standing(session, project)
    if found is None or not found.rule.approval:
        raise Conflict("No automatic round waits for approval.", "Reload the page: somebody changed the rule.")
    if found.rule.set_by == operator.id:
        raise Forbidden("You set this rule yourself.", "Another operator of the project must approve its rounds.")
    if not found.is_due:
        raise Conflict("The rule's conditions no longer hold.", "The page says what is missing.")
    return _start(session, store, project, operator, found)


def start_due(sessions: sessionmaker[Session], store: ArtifactStore) -> list[tuple[str, int]]:
    """Starts rounds whose rules hold and ask nobody; returns (project's name, round's number).

    Each project has a transaction of its own, which this commits. A round that cannot start is left to the page, which
    says why.
    """
    started = []
    with sessions() as session:
        ids = queries.projects_with_rule(session)
    for project_id in ids:
        with sessions() as session:
            project = session.get_one(Project, project_id)
            found = standing(session, project, at_length=False)
            if found is None or found.rule.approval or not found.is_due or found.setter is None:
                continue
            try:
                started.append((project.name, _start(session, store, project, found.setter, found).number))
                session.commit()
            except PrefloopError:  # somebody started another, or changed the rule, at this moment
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
