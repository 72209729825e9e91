"""The lines of public data sets: HH-RLHF, TRL, ShareGPT, UltraFeedback, Nectar, PandaLM, UKPConvArg and HelpSteer3."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import AliasChoices, Field

from app.datasets.fields import (
    Conversation,
    Filled,
    Line,
    PairId,
    Person,
    Preference,
    Rating,
    Tag,
    Tags,
    Text,
    answer,
    messages_of,
    who,
)
from app.datasets.lines import PairBase, instruction
from app.datasets.records import (
    DemonstrationRecord,
    JudgmentRecord,
    Labeler,
    PairRecord,
    PromptRecord,
    Rated,
    Record,
    in_fixed_order,
    ranked_pairs,
)
from app.datasets.transcripts import (
    Turns,
    common_beginning,
    has_marks,
    is_transcript,
    join_runs,
    prompt_turns,
    same,
    storable,
    turns_of,
)
from app.prompts.service import Messages

COMMON_BEGINNING = "The line has no prompt, so the common beginning of chosen and rejected was taken as the prompt"
GPT_4 = Labeler("GPT-4", "ai_judge")


class ArgumentLine(PairBase):
    """UKPConvArg: which of two arguments for the same side of a debate is more convincing."""

    prompt: Filled
    stance: Filled

    def _messages(self) -> Messages:
        return instruction(f"{self.prompt}\n\nArgue for this side: {self.stance}")


class PandaLine(PairBase):
    """PandaLM: an instruction with an input, both models' names in one field, and choices by annotator."""

    instruction: Filled
    input: Text = ""
    models: Text = ""
    pair_id: PairId | None = Field(None, alias="id")

    def _messages(self) -> Messages:
        return instruction(self.instruction, self.input)

    def _models(self) -> tuple[str, str]:
        first, _, second = self.models.partition("_")
        return (first, second) if second and "_" not in second else (self.model_a, self.model_b)


class TranscriptLine(Tags):
    """HH-RLHF's two transcripts that differ in the last assistant turn, or TRL's chosen and rejected.

    The prompt may be in its own field, within the transcripts, or both; then the two must be the same.
    """

    chosen: Any
    rejected: Any
    prompt: Any = None
    conversations: Any = None  # ShareGPT's name for the prompt
    labeler: Person | None = None
    judge: Person | None = None
    score_chosen: Rating | None = None
    score_rejected: Rating | None = None

    def records(self, source: str, told: list[str]) -> list[Record]:
        if (
            self.score_chosen is not None
            and self.score_rejected is not None
            and self.score_chosen < self.score_rejected
        ):
            raise ValueError(f"score_chosen {self.score_chosen:g} is below score_rejected {self.score_rejected:g}")
        given = self.prompt if self.prompt is not None else self.conversations
        start = None if given is None else prompt_turns(given)
        if start is None and _is_plain(self.chosen) and _is_plain(self.rejected):
            start, chosen, rejected = self._parted()
            told.append(COMMON_BEGINNING)
        else:
            chosen, rejected = _whole("chosen", self.chosen, start), _whole("rejected", self.rejected, start)
        turns = _shared(chosen, rejected)
        good, bad = chosen[-1][1], rejected[-1][1]
        if good == bad:
            raise ValueError("chosen and rejected end in the same response")
        prompt = self._prompt(messages_of(join_runs(turns)))
        a, b = in_fixed_order(prompt, good, bad)
        judgment = JudgmentRecord(who(self.labeler, self.judge, source), side=-1 if a == good else 1)
        return [PairRecord(prompt, a, b, source_a=source, source_b=source, judgments=(judgment,))]

    def _parted(self) -> tuple[Turns, Turns, Turns]:
        prompt, good, bad = common_beginning(storable(self.chosen), storable(self.rejected))
        if not prompt.strip():
            raise ValueError(
                'chosen and rejected have no common beginning that is their prompt: give it in a field "prompt", or '
                'write transcripts that begin with "Human:" or lists of messages'
            )
        start = (("user", prompt),)
        return start, (*start, ("assistant", good)), (*start, ("assistant", bad))


def _is_plain(value: object) -> bool:
    return isinstance(value, str) and not has_marks(value)


def _whole(name: str, value: object, start: Turns | None) -> Turns:
    """Return the whole conversation of `chosen` or `rejected`; `start` is the prompt from its own field."""
    if isinstance(value, str) and start is not None and not is_transcript(value):
        return (*start, ("assistant", storable(value)))
    turns = turns_of(value)
    if start is None:
        return turns
    if turns and all(role == "assistant" for role, _ in turns):
        return start + turns
    # A system message may be in only one of the two.
    system = start[:1] if start[:1] and start[0][0] == "system" else ()
    own = turns[:1] if turns[:1] and turns[0][0] == "system" else ()
    asked, said = start[len(system) :], turns[len(own) :]
    if (system and own and not same(system, own)) or not same(asked, said[: len(asked)]):
        raise ValueError(f"the prompt and {name} disagree: {name} does not begin with the prompt's messages")
    return (own or system) + said


def _shared(chosen: Turns, rejected: Turns) -> Turns:
    """Return the conversation that both transcripts share before their last assistant turn."""
    for name, turns in (("chosen", chosen), ("rejected", rejected)):
        if not turns or turns[-1][0] != "assistant":
            raise ValueError(f"{name} does not end with an assistant turn")
    if not same(chosen[:-1], rejected[:-1]):
        pairs = zip(chosen, rejected, strict=False)
        parting = next(
            (n for n, (c, r) in enumerate(pairs, 1) if not same((c,), (r,))), min(len(chosen), len(rejected))
        )
        raise ValueError(
            f"chosen ({len(chosen)} turns) and rejected ({len(rejected)} turns) part at turn {parting}, before their "
            "last assistant turn, so they do not answer the same conversation"
        )
    return chosen[:-1]


class ShareGPTLine(Tags):
    """ShareGPT: a conversation in turns with `from` and `value`; its last answer is the one to imitate."""

    conversations: list[Any]
    system: Text = ""

    def records(self, source: str, told: list[str]) -> list[Record]:
        turns = turns_of(self.conversations)
        if self.system and not (turns and turns[0][0] == "system"):
            turns = (("system", self.system), *turns)
        if not turns or turns[-1][0] != "assistant":
            raise ValueError("its conversations do not end with an answer (from gpt)")
        return [DemonstrationRecord(self._prompt(messages_of(turns[:-1])), answer(turns[-1][1]), source)]


class RankingLine(Tags):
    """Several answers to one prompt, each with its rank (1 is best) or its score (higher is better)."""

    items: ClassVar[Mapping[str, frozenset[str]]] = dict.fromkeys(
        ("answers", "responses", "completions"),
        frozenset("answer response text content completion model rank score rating".split()),
    )
    prompt: Conversation = Field(alias="messages")
    answers: list[Any] | None = None
    responses: list[Any] | None = None
    completions: list[Any] | None = None
    ranks: list[Rating] | None = None
    scores: list[Rating] | None = None
    models: list[Text] | None = None
    labeler: Person | None = None
    judge: Person | None = None

    def _labeler(self, source: str) -> Labeler:
        return who(self.labeler, self.judge, source)

    def records(self, source: str, told: list[str]) -> list[Record]:
        given = [items for items in (self.answers, self.responses, self.completions) if items is not None]
        if len(given) != 1:
            raise ValueError("must hold one of answers, responses or completions")
        rated = [self._rated(item, n, len(given[0]), source) for n, item in enumerate(given[0])]
        return list(ranked_pairs(self._prompt(self.prompt), rated, self._labeler(source)))

    def _rated(self, item: object, n: int, of: int, source: str) -> Rated:
        for name, beside in (("ranks", self.ranks), ("scores", self.scores), ("models", self.models)):
            if beside is not None and len(beside) != of:
                raise ValueError(f"{name} has {len(beside)} entries for {of} answers")
        values: Mapping[str, Any] = item if isinstance(item, dict) else {"text": item}
        text = next(
            (values[name] for name in ("answer", "response", "text", "content", "completion") if name in values), None
        )
        if not isinstance(text, str):
            raise ValueError(f"answer {n + 1} has no text")
        model = values.get("model") or (self.models[n] if self.models else "")
        said = [values.get("rank"), values.get("score"), values.get("rating")]
        said += [self.ranks[n] if self.ranks else None, self.scores[n] if self.scores else None]
        numbers = [(place, _number(value)) for place, value in enumerate(said) if value is not None]
        if len(numbers) != 1:
            raise ValueError(f"answer {n + 1} must have one rank or one score")
        place, number = numbers[0]
        return Rated(storable(text), storable(str(model)) or source, -number if place in (0, 3) else number)


class NectarLine(RankingLine):
    """Nectar: seven answers to a transcript's prompt, ranked by GPT-4."""

    def _labeler(self, source: str) -> Labeler:
        return GPT_4


class UltraFeedbackLine(Tags):
    """UltraFeedback: answers of several models, each rated by GPT-4 in several aspects and ordered by the mean rating.

    `overall_score` is not used, because it contradicts the aspects in some of the published rows.
    """

    items: ClassVar[Mapping[str, frozenset[str]]] = {"completions": frozenset(("response", "model", "annotations"))}
    instruction: Filled
    completions: list[dict[str, Any]]

    def records(self, source: str, told: list[str]) -> list[Record]:
        rated = []
        for n, each in enumerate(self.completions, 1):
            text, model = each.get("response"), each.get("model")
            if not isinstance(text, str):
                raise ValueError(f"completion {n} has no response")
            ratings = _ratings(each.get("annotations"))
            if ratings:
                mean = sum(ratings.values()) / len(ratings)
                rated.append(Rated(storable(text), storable(str(model or source)), mean, ratings))
            else:
                told.append("A completion has no rating; it was left out")
        return list(ranked_pairs(self._prompt(instruction(self.instruction)), rated, GPT_4))


def _ratings(annotations: object) -> dict[str, float]:
    """Return ratings by aspect, without those that are missing or "N/A"."""
    aspects = annotations if isinstance(annotations, dict) else {}
    return {
        str(name): _number(aspect["Rating"])
        for name, aspect in aspects.items()
        if isinstance(aspect, dict) and aspect.get("Rating") not in (None, "", "N/A")
    }


def _number(value: object) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    if isinstance(value, bool) or not abs(number) < float("inf"):
        raise ValueError(f"a rank or rating is not a number: {str(value)[:50]}")
    return number


class HelpSteerPairLine(Line):
    """HelpSteer3, or HelpSteer2's preferences: two responses and a strength from -3 (the first is better) to 3."""

    prompt: Any = Field(alias="context")
    first: Text = Field(validation_alias=AliasChoices("response1", "response_1"))
    second: Text = Field(validation_alias=AliasChoices("response2", "response_2"))
    preference: Preference = Field(validation_alias=AliasChoices("overall_preference", "preference_strength"))
    domain: Tag = ""
    split: Literal["train", "validation"] | None = None

    @classmethod
    def known_fields(cls) -> frozenset[str]:
        both = {f"response{mark}{n}" for mark in ("", "_") for n in (1, 2)}
        return frozenset({"prompt", "context", "overall_preference", "preference_strength", "domain", "split", *both})

    def records(self, source: str, told: list[str]) -> list[Record]:
        turns = prompt_turns(self.prompt)
        split = "heldout" if self.split == "validation" else self.split
        prompt = PromptRecord(messages_of(turns), split, self.domain)
        side = (self.preference > 0) - (self.preference < 0)
        judgment = JudgmentRecord(Labeler(source), side, self.preference)
        return [PairRecord(prompt, self.first, self.second, None, source, source, (judgment,))]
