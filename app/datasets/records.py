"""What a line of an import file says, whatever its format: a prompt, a pair, a judgment on one, a demonstration, or
a thumb."""

import hashlib
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from app.prompts.service import Messages, digest


def text_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class PromptRecord:
    """A prompt; `split` is none where the file leaves it to the import's options."""

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
    """One answer. Either `preference` on the rubric's scale (below 0 A, above 0 B), or `side`: -1 A, 0 tie, 1 B."""

    labeler: str
    side: int
    preference: int | None = None
    rationale: str = ""
    submitted_at: datetime | None = None
    duration_ms: int | None = None
    pair_id: str | None = None


@dataclass(frozen=True, slots=True)
class PairRecord:
    """A prompt and two responses, with the judgments its line holds. Sources are model names, where they are known."""

    prompt: PromptRecord
    response_a: str
    response_b: str
    pair_id: str | None = None
    source_a: str = ""
    source_b: str = ""
    judgments: tuple[JudgmentRecord, ...] = field(default=())
    gold: int | None = None

    @property
    def digest(self) -> str:
        """By which the pair is known when it is imported again: prompt, responses in order, and pair_id."""
        parts = (self.prompt.digest, self.response_a, self.response_b, self.pair_id or "")
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class DemonstrationRecord:
    """An answer to be imitated."""

    prompt: PromptRecord
    text: str
    source: str

    @property
    def digest(self) -> str:
        return text_digest(self.text)

    @property
    def key(self) -> tuple[str, str]:
        """By which the demonstration is known: digests of prompt and text."""
        return self.prompt.digest, self.digest


class ThumbKey(NamedTuple):
    """By which a thumb is known: digests of prompt and text, and who gave it."""

    prompt: str
    text: str
    labeler: str


@dataclass(frozen=True, slots=True)
class ThumbRecord:
    """One response, liked or not by a labeler. source: of the response."""

    prompt: PromptRecord
    text: str
    liked: bool
    labeler: str
    source: str
    rationale: str = ""

    @property
    def key(self) -> ThumbKey:
        return ThumbKey(self.prompt.digest, text_digest(self.text), self.labeler)


Record = PromptRecord | PairRecord | JudgmentRecord | DemonstrationRecord | ThumbRecord
