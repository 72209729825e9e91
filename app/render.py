"""The one template environment, Markdown, and what every page gets."""

from datetime import datetime
from pathlib import Path
from typing import Any

import nh3
from fastapi import Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

from app.accounts.access import CSRF_FIELD, csrf_token, remember_visitor

ROOT = Path(__file__).resolve().parent.parent
# Past this size a text is shown as it is: Markdown and highlighting of a megabyte would hold a thread for seconds.
MARKDOWN_LIMIT = 50_000

_formatter = HtmlFormatter(nowrap=True, classprefix="hl-")


def _highlight(code: str, language: str, _attributes: str) -> str:
    try:
        lexer = get_lexer_by_name(language) if language else None
    except ClassNotFound:
        lexer = None
    return highlight(code, lexer, _formatter) if lexer else ""


# html=False: tags in the text are shown as text. nh3 then removes whatever slips through all the same.
_markdown = MarkdownIt("commonmark", {"html": False, "highlight": _highlight}).enable(["table", "strikethrough"])
_markdown.disable("image")
_ALLOWED = {
    "a", "blockquote", "br", "code", "del", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "li", "ol", "p", "pre", "s",
    "span", "strong", "table", "tbody", "td", "th", "thead", "tr", "ul",
}  # fmt: skip
_ATTRIBUTES = {"a": {"href", "title"}, "span": {"class"}, "code": {"class"}, "ol": {"start"}}


def markdown(text: str) -> Markup:
    """Sanitised HTML of a Markdown text.

    Images are shown as links, or they would tell their host who reads what; links open a tab of their own, or one click
    would lose what a labeler has typed.
    """
    if len(text) > MARKDOWN_LIMIT:
        return Markup('<div class="plain">{}</div>').format(text)
    html = nh3.clean(
        _markdown.render(text),
        tags=_ALLOWED,
        attributes=_ATTRIBUTES,
        url_schemes={"http", "https", "mailto"},
        link_rel="noopener noreferrer nofollow",
        set_tag_attribute_values={"a": {"target": "_blank"}},
    )
    return Markup(html)


def _date(value: datetime | None) -> Markup:
    """A moment as <time>; static/js/app.js shows it in the reader's time zone."""
    if value is None:
        return Markup("–")
    return Markup('<time datetime="{}">{}</time>').format(value.isoformat(), value.strftime("%Y-%m-%d %H:%M UTC"))


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _percent(value: float | None, digits: int = 0) -> str:
    return "–" if value is None else f"{value:.{digits}%}"


def _static_url(path: str) -> str:
    """Address of a static file that changes with the file, so that browsers never keep an old one."""
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
    environment.filters |= {"markdown": markdown, "date": _date, "number": _number, "percent": _percent}
    environment.globals["static_url"] = _static_url
    return environment


templates = _environment()


def fragment(request: Request, template: str, **context: Any) -> str:
    """A template with what all pages share: `user`, `project`, `offers`, `path`, `csrf_token`, `csrf_field()`."""
    token = csrf_token(request)
    shared = {
        "user": getattr(request.state, "user", None),
        "project": getattr(request.state, "project", None),
        "offers": getattr(request.state, "offers", None),  # app.projects.access.Offers
        "path": request.url.path,
        "csrf_token": token,
        "csrf_field": lambda: Markup('<input type="hidden" name="{}" value="{}">').format(CSRF_FIELD, token),
    }
    return templates.get_template(template).render(shared | context)


def page(request: Request, template: str, *, status: int = 200, **context: Any) -> Response:
    response = HTMLResponse(fragment(request, template, **context), status_code=status)
    remember_visitor(request, response)
    return response


def redirect(url: str) -> RedirectResponse:
    """After a form: 303, so that reloading the next page does not send the form again."""
    return RedirectResponse(url, status_code=303)
