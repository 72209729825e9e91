"""Users' texts on pages: rendered as Markdown if that loses nothing and is cheap, else shown as written."""

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

# Longer texts are shown as they are.
MARKDOWN_LIMIT = 50_000
# Only this much of a longer text is laid out at once; the rest waits behind "show all".
SHOWN_AT_ONCE = 20_000
# A text is rendered within the service if its length bounds the cost (tests/app/test_rendering.py measures it): it must
# be short, with few brackets, no table, and no code to highlight. Other texts are rendered in a separate process.
SHORT = 4_000
FEW_BRACKETS = 40
# Time that a page waits for all its texts to be rendered. Texts that are not ready by then are shown as they are.
PAGE_SECONDS = 5.0

_page_ends: ContextVar[float | None] = ContextVar("page_ends", default=None)


class Rendered:
    """Cache of HTML by text (None: no HTML). Keeps the most recently used ones, within `most` bytes of memory."""

    def __init__(self, most: int = 32 << 20) -> None:
        self.most = most
        self.bytes = 0
        self._kept: OrderedDict[str, tuple[str | None, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, text: str) -> str | None:
        """Return a text's HTML; raise KeyError if it is not cached."""
        with self._lock:
            self._kept.move_to_end(text)
            return self._kept[text][0]

    def keep(self, text: str, html: str | None) -> None:
        size = getsizeof(text) + getsizeof(html) + 200  # 200 bytes for the entry itself
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
    """Return HTML of a Markdown text, or the text as it is.

    It is shown as it is if it has more than `limit` characters, if Markdown would lose a part of it (`app.markup`), or
    if rendering takes too long.
    """
    html = _html(text) if len(text) <= min(limit, MARKDOWN_LIMIT) else None
    return _plain(text) if html is None else Markup(html)


def _html(text: str) -> str | None:
    with contextlib.suppress(KeyError):
        return _rendered.get(text)
    try:
        html = html_of(text) if is_cheap(text) else processes.html_of(text, _seconds_left())
    except Busy as busy:
        log.warning("A text of %d characters is shown as it is: %s", len(text), busy)
        return None  # not cached, because it may be rendered another time
    except Exception:
        log.exception("A text of %d characters is shown as it is: the parser failed.", len(text))
        html = None
    _rendered.keep(text, html)
    return html


def is_cheap(text: str) -> bool:
    """Tell whether a text may be rendered within the service."""
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
    """Give all texts rendered within the block `PAGE_SECONDS` in total."""
    token = _page_ends.set(time.monotonic() + PAGE_SECONDS)
    try:
        yield
    finally:
        _page_ends.reset(token)


def _plain(text: str) -> Markup:
    """Show a text as it is. The browser lays out the rest of a long text when somebody asks for it."""
    if len(text) <= SHOWN_AT_ONCE:
        return Markup('<div class="plain" dir="auto">{}</div>').format(text)
    cut = text.rfind("\n", SHOWN_AT_ONCE // 2, SHOWN_AT_ONCE) + 1 or SHOWN_AT_ONCE
    return Markup(
        '<div class="plain" dir="auto">{}</div>'
        '<details class="rest"><summary>Show all of it ({:,} more characters)</summary>'
        '<div class="plain" dir="auto">{}</div></details>'
    ).format(text[:cut], len(text) - cut, text[cut:])


def written(text: str, shown: Markup) -> str:
    """Return the source text to show beside `shown`; empty if they look the same.

    Characters that are invisible, or that change the direction of the text after them, are spelled out: `[U+202E]`.
    """
    if len(text) > MARKDOWN_LIMIT:
        return ""
    spelled = spell_hidden(text)
    return "" if spelled == text and (shown.startswith('<div class="plain"') or _is_the_same(shown, text)) else spelled


def _is_the_same(shown: str, text: str) -> bool:
    """Tell whether a text is one paragraph without any markup or spaces that a browser would collapse."""
    lines = text.split("\n")
    if any(line != " ".join(line.split()) for line in lines):
        return False
    return shown == '<p dir="auto">' + "<br>\n".join(map(escape, lines)) + "</p>\n"
