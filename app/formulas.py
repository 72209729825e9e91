"""Formulas in Markdown: markdown-it rules that mark TeX for static/js/math.js, and distinguish it from prices."""

import re

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token
from markupsafe import escape

FORMULA_LIMIT = 2_000
FORMULA_LINES = 50

# What opens a formula, what closes it, and whether it is displayed on its own line.
_DELIMITERS = (("$$", "$$", True), ("\\[", "\\]", True), ("\\(", "\\)", False))
# Between two prices there are words; between the dollar signs of a formula there is TeX.
_WORD = re.compile(r"[^\W\d_]{2}")
_TEX = re.compile(r"[\\^_={}]")
# TeX that would be invisible once rendered, or that moves or covers other text; it stays as it was written.
_HIDES = re.compile(
    r"(?:^|[^\\])(?:\\\\)*%|\\(?:[hv]?phantom|smash|(?:math)?[rlc]lap|(?:text|f)?color(?:box)?|raisebox|rule|label"
    r"|[mh]?kern|[mh]skip|hspace|[egx]?def|global|long|let|futurelet|(?:re)?newcommand|providecommand|char|href|url"
    r"|includegraphics|html\w*)(?![A-Za-z])"
)


def _formula(state: StateInline, silent: bool) -> bool:
    for opening, closing, display in _DELIMITERS:
        if state.src.startswith(opening, state.pos):
            start = state.pos + len(opening)
            end = state.src.find(closing, start, min(state.posMax, start + FORMULA_LIMIT))
            if end < 0 or not _is_drawn(state.src[start:end]):
                return False
            return _push(state, silent, state.src[start:end], end + len(closing), opening, display=display)
    return _dollars(state, silent)


def _dollars(state: StateInline, silent: bool) -> bool:
    """Parse `$x$` if it cannot be a price.

    There must be TeX and no prose in between, no space next to the dollar signs, and no word or digit directly outside.
    """
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
    if len(tex.split()) > 1 and _WORD.search(tex) and not _TEX.search(tex):
        return False
    if not _is_drawn(tex):
        return False
    return _push(state, silent, tex, end + 1, "$", display=False)


def _is_drawn(tex: str) -> bool:
    return bool(tex.strip()) and not _HIDES.search(tex)


def _push(state: StateInline, silent: bool, tex: str, after: int, opening: str, *, display: bool) -> bool:
    if not silent:
        token = state.push("math_display" if display else "math", "span", 0)
        token.content = tex
        token.markup = opening
    state.pos = after
    return True


def _formula_block(state: StateBlock, start_line: int, end_line: int, silent: bool) -> bool:
    """Parse a formula over several lines, which would otherwise be read as lists and headings."""
    begin = state.bMarks[start_line] + state.tShift[start_line]
    if state.is_code_block(start_line):
        return False
    for opening, closing, display in _DELIMITERS:
        if not display or not state.src.startswith(opening, begin):
            continue
        for line in range(start_line, min(end_line, start_line + FORMULA_LINES)):
            # The closing mark ends its line; on the first line it must come after the opening mark.
            first = begin + len(opening) if line == start_line else state.bMarks[line]
            text = state.src[first : state.eMarks[line]].rstrip()
            if line > start_line and not text:
                return False
            if text.endswith(closing):
                lines = state.getLines(start_line, line + 1, state.blkIndent, False).strip()
                tex = lines[len(opening) : -len(closing)]
                if silent or not _is_drawn(tex):
                    return _is_drawn(tex)
                token = state.push("math_block", "div", 0)
                token.content = tex
                token.markup = opening
                token.map = [start_line, line + 1]
                state.line = line + 1
                return True
        return False
    return False


def _render_math(_self: object, tokens: list[Token], at: int, _options: object, _env: object) -> str:
    return f'<span class="math">{escape(tokens[at].content)}</span>'


def _render_display(_self: object, tokens: list[Token], at: int, _options: object, _env: object) -> str:
    return f'<span class="math math-display">{escape(tokens[at].content)}</span>'


def _render_block(_self: object, tokens: list[Token], at: int, _options: object, _env: object) -> str:
    return f'<p><span class="math math-display">{escape(tokens[at].content)}</span></p>\n'


CLOSING = {opening: closing for opening, closing, _ in _DELIMITERS} | {"$": "$"}


def add_formulas(markdown: MarkdownIt) -> None:
    """Read `\\(x\\)`, `\\[x\\]`, `$$x$$`, and `$x$` if it cannot be a price, as formulas."""
    markdown.inline.ruler.before("escape", "math", _formula)
    markdown.block.ruler.before("fence", "math_block", _formula_block, {"alt": ["paragraph", "blockquote"]})
    markdown.add_render_rule("math", _render_math)
    markdown.add_render_rule("math_display", _render_display)
    markdown.add_render_rule("math_block", _render_block)
