"""Markdown as safe HTML that loses nothing of the text.

Models are trained on what people judge, so this is not all of Markdown. Text that other renderers swallow stays as it
was written: references (`[1]: …`), entities, backslashes, `__init__`, `2*3*4`, underlined headings. Line breaks are
kept, lists keep their numbers, and a code block shows its language. If a character would still be lost, there is no
HTML, and the text is shown as it is (`app.rendering`).
"""

import re

import nh3
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererProtocol
from markdown_it.rules_inline import StateInline
from markdown_it.rules_inline.state_inline import Delimiter
from markdown_it.token import Token
from markupsafe import escape
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexer import Lexer
from pygments.lexers import get_lexer_by_name

from app.formulas import CLOSING, add_formulas

# Longer code is shown without colors: some lexers take quadratic time.
HIGHLIGHT_LIMIT = 8_000
# Maximum nesting of blocks; a list in a list counts twice. Deeper lists are not parsed, so the text is shown as it is.
DEEPEST = 40

# Code is highlighted only in these languages; other code is shown without colors.
LANGUAGES = (
    "bash", "c", "c++", "c#", "cpp", "css", "diff", "go", "haskell", "html", "ini", "java", "javascript", "js", "json",
    "jsx", "kotlin", "latex", "lua", "makefile", "perl", "php", "powershell", "py", "python", "r", "ruby", "rust",
    "scala", "sh", "shell", "sql", "swift", "tex", "toml", "ts", "typescript", "xml", "yaml", "yml",
)  # fmt: skip
_lexers: dict[str, Lexer] = {}
_formatter = HtmlFormatter(nowrap=True, classprefix="hl-")


def _highlight(code: str, language: str, _attributes: str) -> str:
    if language not in LANGUAGES or len(code) > HIGHLIGHT_LIMIT:
        return ""
    if language not in _lexers:
        _lexers[language] = get_lexer_by_name(language)
    return highlight(code, _lexers[language], _formatter)


# ---- syntax that is shown as it was written --------------------------------------------------------------------------

# Chinese, Japanese, Korean, Thai and Lao put no spaces around an emphasized word.
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")


def _stars(state: StateInline, silent: bool) -> bool:
    """Parse emphasis by `*`, but not within a word or number. `_` is part of names."""
    if silent or state.src[state.pos] != "*":
        return False
    found = state.scanDelims(state.pos, True)
    after = state.pos + found.length
    between = _is_word(state.src[state.pos - 1 : state.pos]) and _is_word(state.src[after : after + 1])
    for _ in range(found.length):
        token = state.push("text", "", 0)
        token.content = "*"
        state.delimiters.append(
            Delimiter(
                marker=ord("*"),
                length=found.length,
                token=len(state.tokens) - 1,
                end=-1,
                open=found.can_open and not between,
                close=found.can_close and not between,
            )
        )
    state.pos = after
    return True


def _is_word(character: str) -> bool:
    return character.isalnum() and not _UNSPACED.match(character)


def _backslash(state: StateInline, silent: bool) -> bool:
    """Parse a backslash: it disables the punctuation after it, and both are shown."""
    after = state.src[state.pos + 1 : min(state.pos + 2, state.posMax)]
    if state.src[state.pos] != "\\" or not after or after.isalnum() or after.isspace():
        return False
    if not silent:
        state.append_pending(f"\\{after}")
    state.pos += 2
    return True


def _is_address(url: str) -> bool:
    """Tell whether a link target is a full address: `f[i](x)` is code."""
    return bool(re.match(r"(https?://|mailto:)[^\s]", url, re.IGNORECASE))


def _as_it_is(text: str) -> str:
    return text


def _fence(self: RendererProtocol, tokens: list[Token], at: int, options: object, env: object) -> str:
    """Render a code block below the language from its first line."""
    token = tokens[at]
    language = token.info.strip()
    shown = _highlight(token.content, language.lower(), "") or escape(token.content)
    title = f'<span class="code-language">{escape(language)}</span>' if language else ""
    return f"{title}<pre><code>{shown}</code></pre>\n"


# ---- Markdown --------------------------------------------------------------------------------------------------------


def _make() -> MarkdownIt:
    # html=False: tags in the text are shown as text. nh3 then removes anything that slips through.
    made = MarkdownIt("commonmark", {"html": False, "breaks": True, "maxNesting": DEEPEST})
    made.enable(["table", "strikethrough"])
    made.disable(["image", "reference", "lheading", "entity"])
    made.inline.ruler.at("emphasis", _stars)
    made.inline.ruler.at("escape", _backslash)
    made.add_render_rule("fence", _fence)
    add_formulas(made)
    # Addresses are neither encoded nor decoded, because `html_of` compares them with the source text.
    for name, rule in (("validateLink", _is_address), ("normalizeLink", _as_it_is), ("normalizeLinkText", _as_it_is)):
        setattr(made, name, rule)
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
    "ol": {"start", "dir"},
    "li": {"value"},
    **{block: {"dir"} for block in _BLOCKS},
}


def html_of(text: str) -> str | None:
    """Return sanitized HTML of a Markdown text; None if it would lose something or show nothing.

    Images become links, because loading them would tell their host who reads what. Links open in a new tab, because
    otherwise a click would lose what a labeler has typed. Each block detects its own text direction. Formulas are
    marked for static/js/math.js.
    """
    environment: dict[str, object] = {}
    tokens = _markdown.parse(text, environment)
    written, shown = _compared(text), _compared("".join(_shown(tokens)))
    if not written or written != shown:
        return None
    for token in tokens:
        if token.level == 0 and token.nesting == 1:
            token.attrSet("dir", "auto")
        if token.type == "list_item_open" and token.info:
            token.attrSet("value", str(int(token.info)))
    return nh3.clean(
        _markdown.renderer.render(tokens, _markdown.options, environment),
        tags=_ALLOWED,
        attributes=_ATTRIBUTES,
        url_schemes={"http", "https", "mailto"},
        link_rel="noopener noreferrer nofollow",
        set_tag_attribute_values={"a": {"target": "_blank"}},
    )


# ---- detecting lost text ---------------------------------------------------------------------------------------------

# Spaces, and the Markdown marks that `_shown` does not return. All other characters must be visible.
_MARKS = re.compile(r"[\s#*~`|\-:()\[\]<>\"']+")


def _compared(text: str) -> str:
    return _MARKS.sub("", text)


def _shown(tokens: list[Token]) -> list[str]:
    """Return the visible parts of a text, in the order of the source. An address and its title count as visible."""
    found: list[str] = []
    links: list[Token] = []
    for token in tokens:
        if token.children:
            found += _shown(token.children)
        elif token.type == "list_item_open":
            # Numbers are shown without leading zeros.
            found.append(f"{int(token.info)}{token.markup}" if token.info else token.markup)
        elif token.type == "fence":
            found += (token.info, token.content)
        elif token.type == "hr":
            found.append(token.markup)
        elif token.type.startswith("math"):
            found += (token.markup, token.content, CLOSING[token.markup])
        elif token.type == "link_open":
            links.append(token)
        elif token.type == "link_close":
            opened = links.pop()
            if opened.info != "auto":
                found += (str(opened.attrGet("href") or ""), str(opened.attrGet("title") or ""))
        elif token.type != "inline":
            found.append(token.content)
    return found
