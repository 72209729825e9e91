"""What a line of an import file contains, in any format: a prompt, a pair, a judgment on a pair, a demonstration, or a
thumb."""

import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from app.prompts.service import Messages, digest

MAX_RANKED = 20  # responses to one prompt; 20 make 190 pairs


class Labeler(NamedTuple):
    """Who judged: a person named in the data set (imported) or an AI judge (ai_judge), identified by name."""

    name: str
    kind: str = "imported"


def text_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class PromptRecord:
    """A prompt; `split` is None if the file leaves it to the import's options."""

    messages: Messages
    split: str | None = None
    domain: str = ""
    difficulty: str = "easy"
    safety_category: str | None = None

    @property
    def digest(self) -> str:
        return digest(self.messages)


@dataclass(frozen=True, slots=True)
class JudgmentRecord:
    """One answer. Either `preference` on the rubric's scale (below 0 A, above 0 B), or `side`: -1 A, 0 tie, 1 B.

    aspects: sides by aspect name, or preferences if the whole answer has a preference.
    """

    labeler: Labeler
    side: int
    preference: int | None = None
    rationale: str = ""
    submitted_at: datetime | None = None
    duration_ms: int | None = None
    pair_id: str | None = None
    aspects: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PairRecord:
    """A prompt and two responses, with the judgments in its line. Sources are model names if known.

    ranking: identifies the ranking of several responses that the pair belongs to.
    """

    prompt: PromptRecord
    response_a: str
    response_b: str
    pair_id: str | None = None
    source_a: str = ""
    source_b: str = ""
    judgments: tuple[JudgmentRecord, ...] = field(default=())
    gold: int | None = None
    ranking: str | None = None

    @property
    def digest(self) -> str:
        """Identifies the pair in repeated imports: prompt, responses in order, and pair_id."""
        parts = (self.prompt.digest, self.response_a, self.response_b, self.pair_id or "")
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class DemonstrationRecord:
    """An answer for the model to imitate."""

    prompt: PromptRecord
    text: str
    source: str

    @property
    def digest(self) -> str:
        return text_digest(self.text)

    @property
    def key(self) -> tuple[str, str]:
        """Identifies the demonstration: digests of prompt and text."""
        return self.prompt.digest, self.digest


class ThumbKey(NamedTuple):
    """Identifies a thumb: digests of prompt and text, and who gave it."""

    prompt: str
    text: str
    labeler: Labeler


@dataclass(frozen=True, slots=True)
class ThumbRecord:
    """One response, liked or not by a labeler. source: where the response comes from."""

    prompt: PromptRecord
    text: str
    liked: bool
    labeler: Labeler
    source: str
    rationale: str = ""

    @property
    def key(self) -> ThumbKey:
        return ThumbKey(self.prompt.digest, text_digest(self.text), self.labeler)


class Rated(NamedTuple):
    """A response with its rating, as a whole and by aspect; higher is better."""

    text: str
    source: str
    rating: float
    aspects: Mapping[str, float] = {}


@dataclass(frozen=True, slots=True)
class RatedRecord:
    """One rated response in a line. Responses to the same prompt are compared with each other: see `ranked_pairs`."""

    prompt: PromptRecord
    response: Rated
    labeler: Labeler


Record = PromptRecord | PairRecord | JudgmentRecord | DemonstrationRecord | ThumbRecord | RatedRecord


def in_fixed_order(prompt: PromptRecord, first: str, second: str) -> tuple[str, str]:
    """Choose which of two responses becomes A by their texts alone, not by quality or by the order of lines."""
    known = prompt.digest
    a, b = sorted((first, second), key=lambda text: hashlib.sha256(f"{known}\0{text}".encode()).digest())
    return a, b


def ranked_pairs(prompt: PromptRecord, responses: Iterable[Rated], labeler: Labeler) -> list[PairRecord]:
    """Return the judgments that follow from ranking k responses: k (k - 1) / 2 pairs, with ties for equal ratings.

    A text that occurs twice counts once, with its best rating.

    Raises:
        ValueError: fewer than two different responses, or too many.
    """
    best: dict[str, Rated] = {}
    for each in responses:
        if each.text not in best or each.rating > best[each.text].rating:
            best[each.text] = each
    if len(best) < 2:
        raise ValueError("holds fewer than two different rated responses, so nothing is compared")
    if len(best) > MAX_RANKED:
        raise ValueError(f"holds {len(best)} rated responses; at most {MAX_RANKED} are compared with each other")
    name = _name_of(prompt, list(best)) if len(best) > 2 else None
    pairs = []
    for texts in itertools.combinations(best, 2):
        a, b = (best[text] for text in in_fixed_order(prompt, *texts))
        aspects = {name: _side(a.aspects[name], b.aspects[name]) for name in a.aspects if name in b.aspects}
        judgment = JudgmentRecord(labeler, side=_side(a.rating, b.rating), aspects=aspects)
        pairs.append(PairRecord(prompt, a.text, b.text, None, a.source, b.source, (judgment,), ranking=name))
    return pairs


def _side(a: float, b: float) -> int:
    return (b > a) - (b < a)


def _name_of(prompt: PromptRecord, texts: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps([prompt.digest, *sorted(texts)]).encode()).hexdigest()
