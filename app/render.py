"""The template environment, and the variables that every page gets."""

from datetime import datetime
from pathlib import Path
from typing import Any

from fastapi import Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from app.access.sessions import CSRF_FIELD, csrf_token, remember_visitor
from app.domain.rounds import ALGORITHMS
from app.navigation import views as navigation
from app.rendering import markdown, one_page, written

ROOT = Path(__file__).resolve().parent.parent


def _date(value: datetime | None) -> Markup:
    """Render a moment as <time>; static/js/app.js shows it in the reader's time zone."""
    if value is None:
        return Markup("–")
    return Markup('<time datetime="{}">{}</time>').format(value.isoformat(), value.strftime("%Y-%m-%d %H:%M UTC"))


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _percent(value: float | None, digits: int = 0) -> str:
    return "–" if value is None else f"{value:.{digits}%}"


def counted(n: int, one: str, many: str = "") -> str:
    """Return `1 comparison` or `2,000 comparisons`; `many` is the plural if it is not just `one` with an s."""
    return f"{n:,} {one if n == 1 else many or f'{one}s'}"


def _algorithm(name: str) -> str:
    """Return the label of an algorithm on pages: `On-policy DPO`."""
    return ALGORITHMS.get(name, name)


def duration(seconds: float) -> str:
    """Return `40 seconds`, `14 minutes` or `2.5 hours`: as exact as an estimate is."""
    if seconds < 55:
        return counted(max(1, round(seconds)), "second")
    if seconds < 90 * 60:
        return counted(max(1, round(seconds / 60)), "minute")
    return f"{seconds / 3600:.1f} hours"


def _static_url(path: str) -> str:
    """Return the address of a static file with its version, so that browsers never use an old file."""
    file = ROOT / "static" / path
    version = int(file.stat().st_mtime) if file.exists() else 0
    return f"/static/{path}?v={version:x}"


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(ROOT / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "markdown": markdown,
        "written": written,
        "date": _date,
        "number": _number,
        "percent": _percent,
        "counted": counted,
        "algorithm": _algorithm,
        "duration": duration,
    }
    environment.globals["static_url"] = _static_url
    return environment


templates = _environment()


def fragment(request: Request, template: str, **context: Any) -> str:
    """Render a template with what all pages share: `user`, `project`, `roles` (the user's in the project), `offers`,
    `path`, `navigation()`, `csrf_token`, `csrf_field()`."""
    token = csrf_token(request)
    shared: dict[str, Any] = {
        "user": getattr(request.state, "user", None),
        "project": getattr(request.state, "project", None),
        "roles": getattr(request.state, "roles", frozenset()),
        "offers": getattr(request.state, "offers", None),  # app.access.queries.Offers
        "path": request.url.path,
        "navigation": lambda with_counts=True: navigation.shown(request, with_counts=with_counts),
        "csrf_token": token,
        "csrf_field": lambda: Markup('<input type="hidden" name="{}" value="{}">').format(CSRF_FIELD, token),
    }
    with one_page():
        return templates.get_template(template).render(shared | context)


def page(request: Request, template: str, *, status: int = 200, **context: Any) -> Response:
    response = HTMLResponse(fragment(request, template, **context), status_code=status)
    remember_visitor(request, response)
    return response


def attachment(name: str, content: str) -> Response:
    """Return a file that the browser saves; CSV or SVG, by its name."""
    media_type = {"csv": "text/csv; charset=utf-8", "svg": "image/svg+xml"}[name.rpartition(".")[2]]
    return Response(content, media_type=media_type, headers={"Content-Disposition": f'attachment; filename="{name}"'})


def redirect(url: str) -> RedirectResponse:
    """Redirect after a form with 303, so that reloading the next page does not send the form again."""
    return RedirectResponse(url, status_code=303)
