"""Markdown of strangers as HTML that cannot harm: sanitised, bounded, formulas marked for the browser to draw."""

import re
from functools import lru_cache

import nh3
from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token
from markupsafe import Markup, escape
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

# Past this size a text is shown as it is: Markdown of a megabyte would hold a thread for seconds.
MARKDOWN_LIMIT = 50_000
# Of a longer text, so much is laid out at once; the rest waits behind "show all".
SHOWN_AT_ONCE = 20_000
# Past this size code is shown without colours: some lexers take quadratic time, and a text may hold several blocks.
HIGHLIGHT_LIMIT = 8_000
FORMULA_LIMIT = 2_000
FORMULA_LINES = 50

_formatter = HtmlFormatter(nowrap=True, classprefix="hl-")


def _highlight(code: str, language: str, _attributes: str) -> str:
    if not language or len(code) > HIGHLIGHT_LIMIT:
        return ""
    try:
        return highlight(code, get_lexer_by_name(language), _formatter)
    except ClassNotFound:
        return ""


# ---- formulas --------------------------------------------------------------------------------------------------------

# What opens a formula, what closes it, and whether it stands on a line of its own.
_DELIMITERS = (("$$", "$$", True), ("\\[", "\\]", True), ("\\(", "\\)", False))
# Between two prices there are words, with spaces around them; between the dollars of a formula there is TeX.
_PROSE = re.compile(r"\s\S*[^\W\d_]{2}|[^\W\d_]{2}\S*\s")
_TEX = re.compile(r"[\\^_={}]")


def _formula(state: StateInline, silent: bool) -> bool:
    for opening, closing, display in _DELIMITERS:
        if state.src.startswith(opening, state.pos):
            start = state.pos + len(opening)
            end = state.src.find(closing, start, min(state.posMax, start + FORMULA_LIMIT))
            if end < 0 or not state.src[start:end].strip():
                return False
            return _push(state, silent, state.src[start:end], end + len(closing), display)
    return _dollars(state, silent)


def _dollars(state: StateInline, silent: bool) -> bool:
    """`$x$`, where it cannot be money: TeX and no prose between, close to both dollars, no word or digit beyond."""
    src, start = state.src, state.pos + 1
    if not src.startswith("$", state.pos) or (state.pos and src[state.pos - 1].isalnum()):
        return False
    end = src.find("$", start, min(state.posMax, start + FORMULA_LIMIT))
    if end <= start:
        return False
    tex = src[start:end]
    if tex[0].isspace() or tex[-1].isspace() or "\n\n" in tex or "`" in tex:
        return False
    if src[end + 1 : end + 2].isalnum():
        return False
    if _PROSE.search(tex) and not _TEX.search(tex):
        return False
    return _push(state, silent, tex, end + 1, display=False)


def _push(state: StateInline, silent: bool, tex: str, after: int, display: bool) -> bool:
    if not silent:
        token = state.push("math_display" if display else "math", "span", 0)
        token.content = tex
    state.pos = after
    return True


def _formula_block(state: StateBlock, start_line: int, end_line: int, silent: bool) -> bool:
    """A formula over several lines, which would otherwise be read as lists and headings."""
    begin = state.bMarks[start_line] + state.tShift[start_line]
    if state.is_code_block(start_line):
        return False
    for opening, closing, display in _DELIMITERS:
        if not display or not state.src.startswith(opening, begin):
            continue
        for line in range(start_line, min(end_line, start_line + FORMULA_LINES)):
            # The closing mark ends its line; on the first line it comes after the opening one.
            first = begin + len(opening) if line == start_line else state.bMarks[line]
            text = state.src[first : state.eMarks[line]].rstrip()
            if line > start_line and not text:
                return False
            if text.endswith(closing):
                if silent:
                    return True
                lines = state.getLines(start_line, line + 1, state.blkIndent, False).strip()
                token = state.push("math_block", "div", 0)
                token.content = lines[len(opening) : -len(closing)]
                token.map = [start_line, line + 1]
                state.line = line + 1
                return bool(token.content.strip())
        return False
    return False


def _render_math(_self: object, tokens: list[Token], at: int, _options: object, _env: object) -> str:
    return f'<span class="math">{escape(tokens[at].content)}</span>'


def _render_display(_self: object, tokens: list[Token], at: int, _options: object, _env: object) -> str:
    return f'<span class="math math-display">{escape(tokens[at].content)}</span>'


def _render_block(_self: object, tokens: list[Token], at: int, _options: object, _env: object) -> str:
    return f'<p><span class="math math-display">{escape(tokens[at].content)}</span></p>\n'


# ---- Markdown --------------------------------------------------------------------------------------------------------


def _make() -> MarkdownIt:
    # html=False: tags in the text are shown as text. nh3 then removes whatever slips through all the same.
    made = MarkdownIt("commonmark", {"html": False, "highlight": _highlight}).enable(["table", "strikethrough"])
    made.disable("image")
    made.inline.ruler.before("escape", "math", _formula)
    made.block.ruler.before("fence", "math_block", _formula_block, {"alt": ["paragraph", "reference", "blockquote"]})
    made.add_render_rule("math", _render_math)
    made.add_render_rule("math_display", _render_display)
    made.add_render_rule("math_block", _render_block)
    return made


_markdown = _make()
_ALLOWED = {
    "a", "blockquote", "br", "code", "del", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "li", "ol", "p", "pre", "s",
    "span", "strong", "table", "tbody", "td", "th", "thead", "tr", "ul",
}  # fmt: skip
_BLOCKS = ("p", "ul", "blockquote", "table", "h1", "h2", "h3", "h4", "h5", "h6")
_ATTRIBUTES = {
    "a": {"href", "title"},
    "span": {"class"},
    "code": {"class"},
    "ol": {"start", "dir"},
    **{block: {"dir"} for block in _BLOCKS},
}


def markdown(text: str, limit: int = MARKDOWN_LIMIT) -> Markup:
    """Sanitised HTML of a Markdown text; of one beyond `limit` characters, the text as it is.

    Images are shown as links, or they would tell their host who reads what; links open a tab of their own, or one click
    would lose what a labeler has typed. Each block finds its own direction. Formulas (`\\(x\\)`, `\\[x\\]`, `$$x$$`,
    and `$x$` where it cannot be money) are marked for static/js/math.js.
    """
    return _plain(text) if len(text) > min(limit, MARKDOWN_LIMIT) else _rendered(text)


@lru_cache(maxsize=256)
def _rendered(text: str) -> Markup:
    environment: dict[str, object] = {}
    tokens = _markdown.parse(text, environment)
    for token in tokens:
        if token.level == 0 and token.nesting == 1:
            token.attrSet("dir", "auto")
    html = nh3.clean(
        _markdown.renderer.render(tokens, _markdown.options, environment),
        tags=_ALLOWED,
        attributes=_ATTRIBUTES,
        url_schemes={"http", "https", "mailto"},
        link_rel="noopener noreferrer nofollow",
        set_tag_attribute_values={"a": {"target": "_blank"}},
    )
    return Markup(html)


def _plain(text: str) -> Markup:
    """A text too long for Markdown, as it is; the browser lays out the rest when somebody asks for it."""
    if len(text) <= SHOWN_AT_ONCE:
        return Markup('<div class="plain" dir="auto">{}</div>').format(text)
    cut = text.rfind("\n", SHOWN_AT_ONCE // 2, SHOWN_AT_ONCE) + 1 or SHOWN_AT_ONCE
    return Markup(
        '<div class="plain" dir="auto">{}</div>'
        '<details class="rest"><summary>Show all of it ({:,} more characters)</summary>'
        '<div class="plain" dir="auto">{}</div></details>'
    ).format(text[:cut], len(text) - cut, text[cut:])
