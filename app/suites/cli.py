"""`prefloop suite`: add, list, download and retire suites, on the database itself."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from sqlalchemy.orm import Session

from app.access.members import roles_in
from app.accounts import queries as accounts
from app.accounts.service import normal_email
from app.artifacts import ArtifactStore, read_content
from app.errors import Forbidden, NotFound
from app.models import Project, Suite, User
from app.postgres import command_session
from app.projects import queries as projects
from app.settings import Settings
from app.suites import queries, service
from app.suites.forms import GateForm
from app.suites.queries import Measured
from app.suites.reading import FileRefused, read_cases

suite_app = typer.Typer(no_args_is_help=True, help="Standing evaluations, from the command line. See docs/suites.md.")

ProjectOption = Annotated[str, typer.Option("--project", "-p", help="the project's address (slug)")]
OperatorOption = Annotated[str, typer.Option("--as", help="e-mail of the operator who does it")]
NameArgument = Annotated[str, typer.Argument(help="the suite's name")]


@suite_app.command("add")
def add(
    file: Annotated[Path, typer.Argument(help="JSONL file of cases")],
    project: ProjectOption,
    operator: OperatorOption,
    name: Annotated[
        str, typer.Option(help="of the suite; else the file's name. One that is there gets a version")
    ] = "",
    largest_loss: Annotated[
        float | None, typer.Option(min=0, max=100, help="points that a new policy may lose before it is held back")
    ] = None,
) -> None:
    """Add a suite, or the next version of one. Every faulty line is named, and then nothing is written."""
    if not file.is_file():
        raise NotFound(f"There is no file {file}.", "Name a JSONL file of cases.")
    try:
        cases = read_cases(file.read_bytes())
    except FileRefused as refused:
        for problem in refused.problems:
            typer.echo(f"{file}{f', line {problem.line}' if problem.line else ''}: {problem.reason}", err=True)
        raise
    with _within(project) as (session, store, found):
        actor = _operator(session, found, operator)
        suite = queries.by_name(session, found.id, name or file.stem)
        if suite is None:
            suite, number = service.add(session, store, found, actor, name or file.stem, cases), 1
        else:
            number = service.add_version(session, store, suite, actor, cases).number
        if largest_loss is not None:
            service.set_gate(session, suite, actor, GateForm(largest_loss=largest_loss, bound=suite.bound))
        typer.echo(f"“{suite.name}” version {number}: {len(cases)} cases. The next round runs it.")


@suite_app.command("starters")
def starters(project: ProjectOption, operator: OperatorOption) -> None:
    """Add the suites that come with the program; those that are there stay."""
    with _within(project) as (session, store, found):
        files = [each.file for each in service.starters()]
        added = service.add_starters(session, store, found, _operator(session, found, operator), files)
        typer.echo(f"Added: {', '.join(each.name for each in added) or 'nothing'}.")


@suite_app.command("red-team")
def red_team(project: ProjectOption, operator: OperatorOption) -> None:
    """Make the red-team attempts that worked a suite, or its next version."""
    with _within(project) as (session, store, found):
        suite = service.grow_red_team(session, store, found, _operator(session, found, operator))
        version = service.version_of(session, suite)
        typer.echo(f"“{suite.name}” version {version.number}: {version.cases} cases.")


@suite_app.command("list")
def list_(project: ProjectOption) -> None:
    """List the suites with what the newest round measured."""
    with _within(project) as (session, _, found):
        for each in queries.standing(session, found.id):
            measured = queries.of_suite(session, each.suite.id, 1)
            said = said_of_suite(measured[0]) if measured else f"“{each.suite.name}”: not measured yet"
            typer.echo(f"{said}; version {each.version.number}, {each.version.cases} cases")


@suite_app.command("retire")
def retire(name: NameArgument, project: ProjectOption, operator: OperatorOption) -> None:
    """No round runs the suite any more; what was measured stays."""
    with _within(project) as (session, _, found):
        service.retire(session, _suite(session, found, name), _operator(session, found, operator))
        typer.echo(f"“{name}” is retired.")


@suite_app.command("download")
def download(
    name: NameArgument,
    project: ProjectOption,
    output: Annotated[Path, typer.Option("--output", "-o", help="file to write")],
    version: Annotated[int | None, typer.Option(help="of the suite; else the newest")] = None,
) -> None:
    """Write a version's cases to a file, as they can be added again."""
    with _within(project) as (session, store, found):
        chosen = service.version_of(session, _suite(session, found, name), version)
        output.write_bytes(read_content(store.resolve(chosen.location)))
        typer.echo(f"{output}: {chosen.cases} cases.")


def said_of_suite(measured: Measured) -> str:
    """`“Facts”: 31 of 40 cases, 33 before; -5.0 points, 95% interval -14.2 to +4.2 (round 3)`."""
    score = measured.score
    found = score.difference
    interval = f", 95% interval {100 * found.low:+.1f} to {100 * found.high:+.1f}" if found else ""
    return (
        f"“{measured.suite.name}”: {score.passed} of {score.cases} cases, {score.before} before; "
        f"{100 * score.change:+.1f} points{interval} (round {measured.round.number})"
    )


@contextmanager
def _within(slug: str) -> Iterator[tuple[Session, ArtifactStore, Project]]:
    settings = Settings()
    with command_session(settings) as session:
        project = projects.by_slug(session, slug)
        if project is None:
            raise NotFound(f"There is no project “{slug}”.", "The start page lists the projects.")
        yield session, ArtifactStore(settings.artifacts_root, settings.outside_models), project


def _suite(session: Session, project: Project, name: str) -> Suite:
    suite = queries.by_name(session, project.id, name)
    if suite is None:
        raise NotFound(f"The project has no suite “{name}”.", "`prefloop suite list` names those it has.")
    return suite


def _operator(session: Session, project: Project, email: str) -> User:
    user = accounts.user_by_email(session, normal_email(email))
    if user is None or "operator" not in roles_in(session, project.id, user):
        raise Forbidden(f"{email} is not an operator of “{project.slug}”.", "`prefloop user list` shows who is.")
    return user
