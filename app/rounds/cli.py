"""`prefloop round`: start, watch, cancel and retry rounds, and adopt policies, directly on the database."""

from typing import Annotated

import typer
from pydantic import ValidationError
from sqlalchemy.orm import Session

from app.access.members import roles_in
from app.accounts import queries as accounts
from app.accounts.service import normal_email
from app.artifacts import ArtifactStore
from app.domain.rounds import ALGORITHMS
from app.domain.strengths import STRENGTHS
from app.errors import Conflict, Forbidden, InvalidInput, NotFound
from app.models import ModelVersion, Project, Round, User
from app.postgres import command_session
from app.projects import queries as projects
from app.rounds import outcomes, queries, service, views
from app.rounds.forms import RECOMMENDED, RoundConfig, settings_of
from app.settings import Settings
from app.specs import Generation
from app.suites import queries as suite_queries
from app.suites import service as suites
from app.suites.cli import said_of_suite

round_app = typer.Typer(no_args_is_help=True, help="Rounds of training, from the command line.")

ProjectOption = Annotated[str, typer.Option("--project", "-p", help="the project's address (slug)")]
OperatorOption = Annotated[str, typer.Option("--as", help="e-mail address of the operator who does it")]
NumberOption = Annotated[int | None, typer.Option("--round", "-r", help="the round's number; default: the newest")]


@round_app.command()
def start(
    project: ProjectOption,
    operator: OperatorOption,
    algorithm: Annotated[str, typer.Option(help=", ".join(ALGORITHMS))] = RECOMMENDED,
    strength: Annotated[str | None, typer.Option(help=f"how far the policy may move: {', '.join(STRENGTHS)}")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="a setting, as name=value; repeat")] = None,
) -> None:
    """Start a round. Settings are those of the form; an unknown name is answered with all names."""
    settings = Settings()
    with command_session(settings) as session:
        found = _project(session, project)
        given = [*([f"strength={strength}"] if strength else []), *(set_ or [])]
        rank = queries.adapter_rank(session, found.policy_id)
        config = _config(algorithm, Generation.model_validate(found.generation), given, rank)
        store = ArtifactStore(settings.artifacts_root, settings.outside_models)
        round_ = service.start(session, store, found, _operator(session, found, operator), config)
        typer.echo(f"Round {round_.number} is started. A worker freezes the data it reads and then trains.")


@round_app.command()
def status(project: ProjectOption, number: NumberOption = None) -> None:
    """Say where a round stands."""
    with command_session(Settings()) as session:
        round_ = _round(session, _project(session, project), number)
        typer.echo(f"Round {round_.number} ({ALGORITHMS[round_.algorithm]}): {round_.state}")
        beside = outcomes.people_on(session, round_)
        if verdict := outcomes.verdict_of(session, round_, beside):
            kept = "" if round_.adopted else "; its policy was not adopted"
            what = "win rate" if verdict.by == "people" else "reward difference"
            low, high = verdict.interval[1:]
            said = f"{what} {verdict.interval.value:.2f}, 95% interval {low:.2f} to {high:.2f}"
            typer.echo(f"  Verdict by {verdict.by}: {verdict.word} ({said}){kept}")
        for rival, wins in (("the previous policy", beside.before), ("the first policy", beside.first)):
            if wins and wins.said and (rival == "the previous policy" or wins != beside.before):
                typer.echo(f"  People, beside {rival}: {said_of(wins)}")
        for measured in suite_queries.of_round(session, round_.id):
            typer.echo(f"  Suite {said_of_suite(measured)}")
        for held in suites.held_back(session, round_):
            typer.echo(f"  Held back: {held.words}")
        for stage in views.stages_of(round_, queries.runs_of(session, round_.id)):
            typer.echo(f"  {stage.label:14} {stage.state}{f': {stage.note}' if stage.note else ''}")
        if round_.error:
            typer.echo(round_.error)


@round_app.command()
def cancel(project: ProjectOption, operator: OperatorOption, number: NumberOption = None) -> None:
    """Cancel a round; models that are saved stay."""
    with command_session(Settings()) as session:
        found = _project(session, project)
        round_ = _round(session, found, number)
        service.cancel(session, round_, _operator(session, found, operator))
        typer.echo(f"Round {round_.number} is being cancelled.")


@round_app.command()
def retry(project: ProjectOption, operator: OperatorOption, number: NumberOption = None) -> None:
    """Retry a failed round in the stage that failed."""
    settings = Settings()
    with command_session(settings) as session:
        found = _project(session, project)
        round_ = _round(session, found, number)
        store = ArtifactStore(settings.artifacts_root, settings.outside_models)
        service.retry(session, store, round_, _operator(session, found, operator), settings.sampling_server)
        typer.echo(f"Round {round_.number} is {round_.state} again.")


@round_app.command()
def adopt(
    project: ProjectOption,
    operator: OperatorOption,
    number: NumberOption = None,
    previous: Annotated[bool, typer.Option("--previous", help="adopt the policy from before the round")] = False,
    reason: Annotated[
        str, typer.Option(help="reason for the audit log; not needed to go back to an earlier policy")
    ] = "",
) -> None:
    """Make a round's new policy the project's policy."""
    settings = Settings()
    with command_session(settings) as session:
        found = _project(session, project)
        round_ = _round(session, found, number)
        model_id = round_.policy_before_id if previous else round_.policy_after_id
        if model_id is None:
            raise Conflict(f"Round {round_.number} made no policy.", "Choose another round.")
        model = session.get_one(ModelVersion, model_id)
        store = ArtifactStore(settings.artifacts_root, settings.outside_models)
        service.adopt(session, store, found, model, _operator(session, found, operator), reason)
        typer.echo(f"The project's policy is {model.name}.")


def said_of(wins: outcomes.WinRate) -> str:
    """Return text such as `win rate 0.62, 95% interval 0.41 to 0.80, 24 prompts; about 31 more decide`."""
    said = wins.said
    assert said is not None, "of all prompts"
    text = f"win rate {said.value:.2f}, 95% interval {said.low:.2f} to {said.high:.2f}, {said.prompts} prompts"
    return f"{text}; at the present win rate, about {said.more} more prompts decide" if said.more else text


def _project(session: Session, slug: str) -> Project:
    project = projects.by_slug(session, slug)
    if project is None:
        raise NotFound(f"There is no project “{slug}”.", "The start page lists the projects.")
    return project


def _round(session: Session, project: Project, number: int | None) -> Round:
    past = queries.rounds(session, project.id)
    found = [round_ for round_ in past if number in (None, round_.number)]
    if not found:
        raise NotFound("There is no such round.", f"The project has {len(past)} rounds.")
    return found[0]


def _operator(session: Session, project: Project, email: str) -> User:
    user = accounts.user_by_email(session, normal_email(email))
    if user is None or "operator" not in roles_in(session, project.id, user):
        raise Forbidden(f"{email} is not an operator of “{project.slug}”.", "`prefloop user list` shows who is.")
    return user


def _config(
    algorithm: str, generation: Generation, settings: list[str], adapter_rank: int | None = None
) -> RoundConfig:
    """Return the algorithm's defaults with the given settings."""
    try:
        named = dict(setting.split("=", 1) for setting in settings)
    except ValueError:
        raise InvalidInput("A setting has no value.", "Write it as name=value, for instance beta=0.2.") from None
    try:
        chosen = RoundConfig.defaults(algorithm, generation)
        known = [name for name, *_ in settings_of(chosen.algorithm)]
        if unknown := set(named) - set(known):
            raise InvalidInput(
                f"Unknown settings of {ALGORITHMS[algorithm]}: {', '.join(sorted(unknown))}.",
                f"Known: {', '.join(known)}.",
            )
        return RoundConfig.defaults(algorithm, generation, adapter_rank, **named)
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidInput(f"{'.'.join(map(str, first['loc']))}: {first['msg']}.", "Correct it.") from error
