"""Texts of strangers on pages: as Markdown where that loses nothing and costs little, else as they were written."""

import contextlib
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextvars import ContextVar
from sys import getsizeof

from markupsafe import Markup, escape

from app.domain.textdiff import spell_hidden
from app.markup import html_of
from app.render_processes import Busy, processes

log = logging.getLogger(__name__)

# Past this size a text is shown as it is.
MARKDOWN_LIMIT = 50_000
# A longer text is laid out up to here; the rest waits behind "show all".
SHOWN_AT_ONCE = 20_000
# A text is rendered within the service when its cost is bounded by its length (tests/app/test_rendering.py counts it):
# short, few brackets, no table, no code to colour. All others are rendered in a process of their own.
SHORT = 4_000
FEW_BRACKETS = 40
# What a page waits for the rendering of all its texts. What is not there by then is shown as it is.
PAGE_SECONDS = 5.0

_page_ends: ContextVar[float | None] = ContextVar("page_ends", default=None)


class Rendered:
    """HTML by text, none where there is none: those used last, within `most` bytes of memory."""

    def __init__(self, most: int = 32 << 20) -> None:
        self.most = most
        self.bytes = 0
        self._kept: OrderedDict[str, tuple[str | None, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, text: str) -> str | None:
        """Raises KeyError for a text that is not kept."""
        with self._lock:
            self._kept.move_to_end(text)
            return self._kept[text][0]

    def keep(self, text: str, html: str | None) -> None:
        size = getsizeof(text) + getsizeof(html) + 200  # and the entry itself
        with self._lock:
            if text in self._kept:
                return
            self._kept[text] = html, size
            self.bytes += size
            while self.bytes > self.most:
                _, (_, freed) = self._kept.popitem(last=False)
                self.bytes -= freed


_rendered = Rendered()


def markdown(text: str, limit: int = MARKDOWN_LIMIT) -> Markup:
    """HTML of a Markdown text; the text as it is where it has more than `limit` characters, where Markdown would lose
    something of it (`app.markup`), and where rendering takes too long."""
    html = _html(text) if len(text) <= min(limit, MARKDOWN_LIMIT) else None
    return _plain(text) if html is None else Markup(html)


def _html(text: str) -> str | None:
    with contextlib.suppress(KeyError):
        return _rendered.get(text)
    try:
        html = html_of(text) if is_cheap(text) else processes.html_of(text, _seconds_left())
    except Busy as busy:
        log.warning("A text of %d characters is shown as it is: %s", len(text), busy)
        return None  # and not kept: another time it may be drawn
    except Exception:
        log.exception("A text of %d characters is shown as it is: the parser failed.", len(text))
        html = None
    _rendered.keep(text, html)
    return html


def is_cheap(text: str) -> bool:
    """Whether a text may be rendered within the service."""
    return (
        len(text) <= SHORT
        and text.count("[") <= FEW_BRACKETS
        and not any(costly in text for costly in ("|", "```", "~~~"))
    )


def _seconds_left() -> float:
    ends = _page_ends.get()
    return PAGE_SECONDS if ends is None else ends - time.monotonic()


@contextlib.contextmanager
def one_page() -> Iterator[None]:
    """All texts that are rendered within wait `PAGE_SECONDS` together."""
    token = _page_ends.set(time.monotonic() + PAGE_SECONDS)
    try:
        yield
    finally:
        _page_ends.reset(token)


def _plain(text: str) -> Markup:
    """A text as it is; of a long one the browser lays out the rest when somebody asks for it."""
    if len(text) <= SHOWN_AT_ONCE:
        return Markup('<div class="plain" dir="auto">{}</div>').format(text)
    cut = text.rfind("\n", SHOWN_AT_ONCE // 2, SHOWN_AT_ONCE) + 1 or SHOWN_AT_ONCE
    return Markup(
        '<div class="plain" dir="auto">{}</div>'
        '<details class="rest"><summary>Show all of it ({:,} more characters)</summary>'
        '<div class="plain" dir="auto">{}</div></details>'
    ).format(text[:cut], len(text) - cut, text[cut:])


def written(text: str, shown: Markup) -> str:
    """The text as it was written, to stand beside what is `shown` of it; empty where that is the same.

    What cannot be seen, or turns the direction of what follows, is spelled out: `[U+202E]`.
    """
    if len(text) > MARKDOWN_LIMIT:
        return ""
    spelled = spell_hidden(text)
    return "" if spelled == text and (shown.startswith('<div class="plain"') or _is_the_same(shown, text)) else spelled


def _is_the_same(shown: str, text: str) -> bool:
    """Whether a text is one paragraph without any mark, nor spaces that a browser would leave out."""
    lines = text.split("\n")
    if any(line != " ".join(line.split()) for line in lines):
        return False
    return shown == '<p dir="auto">' + "<br>\n".join(map(escape, lines)) + "</p>\n"
