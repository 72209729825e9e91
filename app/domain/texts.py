"""Simple figures of a response's text, such as repetition or refusal. All of them are known to be crude.

Phrases are English. A response in another language is never counted as refusing, hedging or flattering.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

OPENING = 200  # a refusal or flattery must be in this number of first characters

_REFUSAL = re.compile(
    r"\b(i(?:'m| am) (?:very |really |so )?(?:sorry|unable|not able)"
    r"|i (?:can't|can ?not|won't|will not|must decline)"
    r"|i apologi[sz]e|unfortunately,? i\b|as an ai\b"
    r"|it(?:'s| is) (?:not |in)appropriate|i do(?:n't| not) feel comfortable)",
    re.IGNORECASE,
)
_FLATTERY = re.compile(
    r"\b((?:great|good|excellent|wonderful|fantastic|brilliant|amazing|interesting|insightful|thoughtful)"
    r" (?:question|point|idea|observation|choice)"
    r"|you(?:'re| are) (?:absolutely|so|completely|totally|quite) right"
    r"|what an? (?:great|excellent|wonderful|fantastic|brilliant|amazing|interesting)"
    r"|i(?:'m| am) (?:so |very )?(?:impressed|glad you asked))",
    re.IGNORECASE,
)
_HEDGE = re.compile(
    r"\b(it depends|it(?:'s| is) (?:important|worth) (?:to note|noting|to remember)|there is no (?:one|single|simple)"
    r"|i(?:'m| am) not (?:sure|certain)|it(?:'s| is) (?:hard|difficult|impossible) to say|results may vary"
    r"|consult (?:a|an|your|with)|may or may not|generally speaking|to some extent|in some cases)",
    re.IGNORECASE,
)
_MARK = re.compile(  # Markdown: a heading, a list item, a table row, a fence, bold text
    r"^\s{0,3}(?:#{1,6} |[-*+] |\d{1,3}[.)] |\||```)|\*\*[^*\n]+\*\*|__[^_\n]+__", re.MULTILINE
)
_COPIED_WORDS = 5  # length of a run of words


def words(text: str) -> list[str]:
    return text.lower().split()


def repetition(text: str) -> float:
    """Return the share of a text's word trigrams that occurred earlier in it; 0 for fewer than two trigrams."""
    trigrams = _in_a_row(words(text), 3)
    return 1 - len(set(trigrams)) / len(trigrams) if len(trigrams) > 1 else 0.0


def refuses(text: str) -> bool:
    """Return whether the beginning of the text has a phrase of refusal."""
    return _REFUSAL.search(_straight(text[:OPENING])) is not None


def flatters(text: str) -> bool:
    """Return whether the beginning of the text praises the person or their question, or agrees excessively."""
    return _FLATTERY.search(_straight(text[:OPENING])) is not None


def hedges(text: str) -> bool:
    """Return whether the text has a phrase that qualifies its statements or refers the reader to someone else."""
    return _HEDGE.search(_straight(text)) is not None


def formatting(text: str) -> float:
    """Return Markdown marks per hundred words: headings, list items, table rows, fences, bold text."""
    return 100 * len(_MARK.findall(text)) / max(len(text.split()), 1)


def is_empty(text: str) -> bool:
    """Return whether the text has neither a letter nor a digit."""
    return not any(character.isalnum() for character in text)


def copied(prompt: str, text: str) -> float:
    """Return the share of the text's runs of five words that are in the prompt; 0 for fewer than five words."""
    runs = _in_a_row(words(text), _COPIED_WORDS)
    known = set(_in_a_row(words(prompt), _COPIED_WORDS))
    return sum(run in known for run in runs) / len(runs) if runs else 0.0


def other_script(prompt: str, text: str) -> float:
    """Return the share of the text's letters in scripts (Latin, Cyrillic, Han...) that the prompt does not use."""
    found, asked = _scripts(text), _scripts(prompt)
    total = sum(found.values())
    return sum(n for script, n in found.items() if script not in asked) / total if total and asked else 0.0


def variety(texts: Sequence[str]) -> float:
    """Return the share of distinct word pairs in all texts (distinct-2: Li et al. 2016); 1 without word pairs."""
    pairs = [pair for text in texts for pair in _in_a_row(words(text), 2)]
    return len(set(pairs)) / len(pairs) if pairs else 1.0


# Figures of a response that depend only on prompt and text: a name, and a function of (prompt, text).
FIGURES: dict[str, Callable[[str, str], float]] = {
    "repetition": lambda _prompt, text: repetition(text),
    "refusals": lambda _prompt, text: refuses(text),
    "hedging": lambda _prompt, text: hedges(text),
    "flattery": lambda _prompt, text: flatters(text),
    "formatting": lambda _prompt, text: formatting(text),
    "empty": lambda _prompt, text: is_empty(text),
    "copied": copied,
    "other_script": other_script,
}


def asked_in(messages: Sequence[Mapping[str, Any]]) -> str:
    """Return the text of all messages of a prompt."""
    return "\n".join(str(message["content"]) for message in messages)


def _in_a_row(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def _straight(text: str) -> str:
    return text.replace("’", "'")


def _scripts(text: str) -> Counter[str]:
    """Count letters by the first word of their Unicode name, which is the script for all but a few signs."""
    return Counter(unicodedata.name(character, "").split(" ")[0] for character in text if character.isalpha())
