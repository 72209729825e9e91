"""`prefloop simulate`."""

import json
import secrets
import sys
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from app.accounts import service as accounts
from app.domain.rounds import ALGORITHMS
from app.errors import InvalidInput, NotFound
from app.models.member import ROLES
from app.postgres import command_session
from app.projects import queries as projects
from app.rounds.forms import RECOMMENDED
from app.settings import Settings
from app.simulation.browser import Browser
from app.simulation.labelers import Crew
from app.simulation.loop import Loop, RoundReport
from app.simulation.preference import PREFERENCES


def simulate_command(
    rounds: Annotated[int, typer.Option(min=1, help="turns of the loop")] = 2,
    labelers: Annotated[int, typer.Option(min=1, max=64, help="simulated labelers, working at the same time")] = 4,
    judgments: Annotated[int, typer.Option(min=1, help="at most so many judgments before each round")] = 100_000,
    preference: Annotated[str, typer.Option(help=f"what they like: {', '.join(PREFERENCES)}")] = "concise",
    noise: Annotated[float, typer.Option(min=0, max=1, help="share of judgments made at random")] = 0.1,
    position_bias: Annotated[float, typer.Option(min=0, max=1, help="share that goes to the left unread")] = 0.05,
    algorithm: Annotated[str, typer.Option(help=", ".join(ALGORITHMS))] = RECOMMENDED,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="a setting of the rounds, as name=value; repeat")
    ] = None,
    project: Annotated[str, typer.Option("--project", "-p", help="the project's address (slug)")] = "starter",
    url: Annotated[str | None, typer.Option(help="the running service; without it the one of the settings")] = None,
    invitation: Annotated[
        str | None,
        typer.Option(
            help="a link that invites into the project with all three roles; without it one is made in the settings' "
            "database"
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="of the labelers' errors")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object a round")] = False,
) -> None:
    """Let simulated labelers with a hidden preference run the loop over HTTP, and measure whether it learns it.

    They use the pages a browser uses. Their accounts and judgments are marked as simulated.
    """
    if preference not in PREFERENCES:
        raise InvalidInput(f"There is no preference “{preference}”.", f"Choose one of {', '.join(PREFERENCES)}.")
    if noise + position_bias > 1:
        raise InvalidInput("Noise and position bias together exceed 1.", "They are shares of the same judgments.")
    settings = Settings()
    url = (url or settings.url).rstrip("/")
    # Progress goes to the error stream, so that with --json the output stream has only results.
    progress = Console(stderr=True, highlight=False)
    operator = _join(url, invitation or _invitation(settings, url, project), "Simulation operator")
    crew = Crew(
        [_join(url, link, f"Simulated {n + 1}") for n, link in enumerate(_invite(operator, project, labelers))],
        PREFERENCES[preference],
        noise,
        position_bias,
        seed,
    )
    loop = Loop(operator, crew, project, PREFERENCES[preference], lambda line: progress.print(f"[dim]{line}[/dim]"))
    # The reward model decides on adoption, because the next round starts before people have judged enough.
    overrides = {"promotion": "reward_model"} | dict(_setting(text) for text in set_ or []) | {"algorithm": algorithm}
    reports = []
    for _ in range(rounds):
        report = loop.turn(overrides, judgments)
        reports.append(report)
        if as_json:
            print(json.dumps(report._asdict()), flush=True)
    loop.finish_labeling(judgments)
    if not as_json:
        people = {report.round: loop.people(report.round) for report in reports}
        Console(file=sys.stdout).print(_table(reports, people))


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise InvalidInput(f"“{text}” is not a setting.", "Write it as name=value, for instance epochs=2.")
    return name.strip(), value.strip()


def _invitation(settings: Settings, url: str, slug: str) -> str:
    """Create a link, as `prefloop invite` does, for an account that can run the whole project; return it."""
    with command_session(settings) as session:
        project = projects.by_slug(session, slug)
        if project is None:
            raise NotFound(f"There is no project “{slug}”.", "Choose another one by --project.")
        token = accounts.create_link(
            session, created_by=None, days=1, project_id=project.id, roles=ROLES, kind="simulated"
        )
    return f"{url}/join/{token}"


def _invite(operator: Browser, slug: str, count: int) -> list[str]:
    form = operator.open(f"/projects/{slug}/members").form('form[action$="/members/invite"]')
    sent = [operator.send(form, roles=["labeler"], kind="simulated") for _ in range(count)]
    return [str(page.soup.select_one("input.copy")["value"]) for page in sent]  # type: ignore[index]


def _join(url: str, link: str, name: str) -> Browser:
    browser = Browser(url)
    form = browser.open(f"/join/{link.rpartition('/')[2]}").form("main form")
    number = secrets.token_hex(4)
    browser.send(form, name=name, email=f"simulated-{number}@simulation.invalid", password=secrets.token_urlsafe(16))
    return browser


def _table(reports: list[RoundReport], people: Mapping[int, dict[str, Any] | None]) -> Table:
    """Return the table of results.

    Args:
        people: by round, the result of people's judgments on its policy against the previous one, at the end of the
            simulation.
    """
    columns = (
        "round",
        "judgments",
        "alpha",
        "rm accuracy",
        "win rate against the first policy",
        "people on new and previous policy",
        "true score (first)",
        "proxy score",
        "KL",
        "KL (k3)",
        "tokens (first)",
        "finished (first)",
        "adopted",
        "seconds",
    )
    table = Table(*columns)
    for report in reports:
        table.add_row(
            str(report.round),
            str(report.judgments),
            _shown(report.alpha),
            _shown(report.rm_accuracy),
            f"{_shown(report.win_rate)}  [{_shown(report.win_rate_low)}, {_shown(report.win_rate_high)}]",
            _said(people.get(report.round)),
            f"{_shown(report.true)} ({_shown(report.first_true)})",
            _shown(report.proxy),
            _shown(report.kl),
            _shown(report.kl_k3),
            f"{_shown(report.tokens, 1)} ({_shown(report.first_tokens, 1)})",
            f"{_shown(report.finished, 2)} ({_shown(report.first_finished, 2)})",
            "–" if report.adopted is None else "yes" if report.adopted else "no",
            f"{report.seconds:.0f}",
        )
    return table


def _said(people: dict[str, Any] | None) -> str:
    """Format a result: `better: 0.71 [0.55, 0.86], 34 prompts`, and how many more prompts a decision needs."""
    if people is None:
        return "–"
    said = f"{people['word']}: {_shown(people['value'], 2)} [{_shown(people['low'], 2)}, {_shown(people['high'], 2)}]"
    more = f", about {people['more']} more to decide" if people["more"] else ""
    return f"{said}, {people['prompts']} prompts{more}"


def _shown(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
