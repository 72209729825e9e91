"""Checks across all lines of an import: pairs that judgments refer to, repeated lines, contradictions."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeVar

from app.datasets.reading import MAX_PROBLEMS, FileContent, Located, Problems, place
from app.datasets.records import (
    DemonstrationRecord,
    JudgmentRecord,
    Labeler,
    PairRecord,
    PromptRecord,
    Record,
    ThumbKey,
    ThumbRecord,
)

MAX_JUDGMENTS = 1000  # on one comparison: the table's limit
R = TypeVar("R", bound=Record)


class StoredPair(NamedTuple):
    """A comparison in the database; its judgments must be made under its rubric. gold: only for a calibration item."""

    id: int
    rubric_id: int
    gold: int | None = None


class Scale(NamedTuple):
    """What a rubric version asks for; see `check`."""

    strengths: int
    allow_tie: bool = True
    aspects: Sequence[str] = ()


class Said(NamedTuple):
    """The content of a live judgment in the database."""

    preference: int
    rationale: str
    aspects: dict[str, int]


@dataclass
class Known:
    """What the project already holds of the kinds that imports bring. Comparisons are identified by digest."""

    prompt_splits: dict[str, str] = field(default_factory=dict)  # by prompt digest
    comparisons: dict[str, StoredPair] = field(default_factory=dict)  # by digest
    scales: dict[int, Scale] = field(default_factory=dict)  # by id of the rubric version
    by_pair_id: dict[str, list[str]] = field(default_factory=dict)
    # By digest and labeler: live ones, and those on comparisons that are asked again under a newer rubric.
    judgments: dict[tuple[str, Labeler], Said] = field(default_factory=dict)
    removed: set[Labeler] = field(default_factory=set)  # labelers removed from the project with all their judgments
    demonstrations: set[tuple[str, str]] = field(default_factory=set)  # digests of prompt and text
    thumbs: dict[ThumbKey, bool] = field(default_factory=dict)  # liked or not; live thumbs of imported labelers


@dataclass(frozen=True, slots=True)
class Vote:
    """A judgment with its final preference."""

    record: JudgmentRecord
    preference: int
    aspects: dict[str, int] = field(default_factory=dict)


@dataclass
class Checked:
    """What the import will add, without duplicates; `repeated` counts lines that repeat another line or stored data.

    not_taken: pairs with a known answer that the project has as an ordinary comparison ("ordinary"), or with a
    different known answer ("other").
    """

    prompts: dict[str, tuple[PromptRecord, str]] = field(default_factory=dict)  # by digest, with the source
    pairs: dict[str, PairRecord] = field(default_factory=dict)  # by digest
    votes: dict[tuple[str, Labeler], Vote] = field(default_factory=dict)  # by pair digest and labeler, new ones only
    demonstrations: dict[tuple[str, str], DemonstrationRecord] = field(default_factory=dict)  # by key, new ones only
    thumbs: dict[ThumbKey, ThumbRecord] = field(default_factory=dict)  # new ones only
    repeated: Counter[str] = field(default_factory=Counter)
    not_taken: Counter[str] = field(default_factory=Counter)
    problems: Problems = field(default_factory=Problems)


def check(contents: Sequence[FileContent], known: Known, scale: Scale) -> Checked:
    """Put the files' records together; a line that contradicts another or the project becomes a problem.

    Args:
        scale: of the newest rubric version, under which new comparisons are judged. Judgments on a stored comparison
            are checked against that comparison's version. A choice without a strength becomes the middle one: 2 of 3, 1
            of 1 or 2. If the rubric has no tie, a tie cannot be a known answer, because nobody could give it; ties in
            judgments are kept. Ratings of aspects that the version does not have are left out, with a note.
    """
    checker = _Checker(contents, known, scale)
    for prompt, located in _of_type(contents, PromptRecord):
        checker.run(checker.add_prompt, prompt, located)
    for pair, located in _of_type(contents, PairRecord):
        checker.run(checker.add_pair, pair, located)
    for demonstration, located in _of_type(contents, DemonstrationRecord):
        checker.run(checker.add_demonstration, demonstration, located)
    for thumb, located in _of_type(contents, ThumbRecord):
        checker.run(checker.add_thumb, thumb, located)
    # Last, so that the order of the files does not matter.
    for judgment, located in _of_type(contents, JudgmentRecord):
        checker.run(checker.add_judgment, judgment, located)
    checker.checked.problems = _merged(contents, checker.checked.problems)
    return checker.checked


def _merged(contents: Sequence[FileContent], found: Problems) -> Problems:
    """Return all problems, in the order of files and lines."""
    order = {content.name: n for n, content in enumerate(contents)}
    every = [*(content.problems for content in contents), found]
    kept = sorted((p for problems in every for p in problems), key=lambda problem: (order[problem.file], problem.line))
    return Problems(kept[:MAX_PROBLEMS], sum(len(problems) for problems in every))


def _of_type(contents: Iterable[FileContent], kind: type[R]) -> Iterator[tuple[R, Located]]:
    for content in contents:
        for located in content.records:
            if isinstance(located.record, kind):
                yield located.record, located


class _Checker:
    """Checks and collects records. Its methods raise ValueError for an invalid line before they keep any part of it."""

    def __init__(self, contents: Sequence[FileContent], known: Known, scale: Scale) -> None:
        self.known = known
        self.newest = scale
        self.checked = Checked()
        self.explicit_splits: dict[str, tuple[str, str]] = {}  # by prompt digest: split, and the line that set it
        self.pair_ids: dict[str, tuple[str, str]] = {}  # pair digest, and the line that named it
        self.votes_on: Counter[str] = Counter(digest for digest, _ in known.judgments)
        self.contents = {content.name: content for content in contents}

    def scale_of(self, digest: str) -> Scale:
        """Return the scale of the rubric version under which the comparison is judged."""
        stored = self.known.comparisons.get(digest)
        return self.known.scales[stored.rubric_id] if stored else self.newest

    def run(self, add: Callable[[R, Located], None], record: R, located: Located) -> None:
        try:
            add(record, located)
        except ValueError as error:
            self.checked.problems.add(located.file, located.line, str(error))

    def add_prompt(self, prompt: PromptRecord, located: Located) -> None:
        digest = prompt.digest
        if prompt.split is None and (split := self.contents[located.file].split):
            prompt = replace(prompt, split=split)
        if prompt.split:
            known = self.known.prompt_splits.get(digest)
            said, where = self.explicit_splits.get(digest, (prompt.split, ""))
            if known and known != prompt.split:
                raise ValueError(f"puts the prompt into {prompt.split}, but the project has it in {known}")
            if said != prompt.split:
                raise ValueError(f"puts the prompt into {prompt.split}, but {where} put it into {said}")
            self.explicit_splits[digest] = (prompt.split, f"{place(located.file, located.line)},")
        if digest in self.checked.prompts or digest in self.known.prompt_splits:
            self.checked.repeated["prompts"] += isinstance(located.record, PromptRecord)
        # A line that names the split overrides lines that do not, in any order.
        if digest not in self.checked.prompts or prompt.split:
            self.checked.prompts[digest] = (prompt, located.source)

    def add_pair(self, pair: PairRecord, located: Located) -> None:
        digest = pair.digest
        where = place(located.file, located.line)
        if pair.pair_id is not None:
            other, said = self.pair_ids.get(pair.pair_id, (digest, ""))
            if other != digest:
                raise ValueError(f"pair_id {pair.pair_id} is already another pair's ({said})")
        scale = self.scale_of(digest)
        if pair.gold is not None and abs(pair.gold) > scale.strengths:
            raise ValueError(f"known_answer {pair.gold} is outside {_rubrics(scale)}")
        if pair.gold == 0 and not scale.allow_tie:
            raise ValueError("known_answer 0 is a tie, but the rubric has no tie")
        earlier, stored = self.checked.pairs.get(digest, pair), self.known.comparisons.get(digest)
        if pair.gold is not None and earlier.gold not in (None, pair.gold):
            raise ValueError(f"known_answer {pair.gold} contradicts an earlier line's {earlier.gold}")
        labelers = [judgment.labeler for judgment in pair.judgments]
        votes = [vote for judgment in pair.judgments if (vote := self.vote(digest, judgment, located))]
        if len(set(labelers)) < len(labelers):
            raise ValueError("names one labeler twice")
        self.require_room(digest, len(votes))
        self.add_prompt(pair.prompt, located)
        if pair.pair_id is not None:
            self.pair_ids.setdefault(pair.pair_id, (digest, where))
        if digest in self.checked.pairs or digest in self.known.comparisons:
            self.checked.repeated["comparisons"] += 1
        # An earlier line for the same pair may have had no known answer.
        self.checked.pairs[digest] = earlier if pair.gold is None else replace(earlier, gold=pair.gold)
        if stored is not None and pair.gold not in (None, stored.gold):
            self.checked.not_taken["ordinary" if stored.gold is None else "other"] += 1
        self.keep(digest, votes, repeated=len(labelers) - len(votes))

    def add_demonstration(self, demonstration: DemonstrationRecord, located: Located) -> None:
        self.add_prompt(demonstration.prompt, located)
        if demonstration.key in self.checked.demonstrations or demonstration.key in self.known.demonstrations:
            self.checked.repeated["demonstrations"] += 1
        else:
            self.checked.demonstrations[demonstration.key] = demonstration

    def add_thumb(self, thumb: ThumbRecord, located: Located) -> None:
        if self.is_removed(thumb.labeler, located):
            return
        earlier = self.checked.thumbs.get(thumb.key)
        liked = earlier.liked if earlier else self.known.thumbs.get(thumb.key)
        if liked not in (None, thumb.liked):
            said, now = ("up", "down") if liked else ("down", "up")
            raise ValueError(f"{thumb.labeler.name} already gave this response a thumb {said}, now one {now}")
        self.add_prompt(thumb.prompt, located)
        if liked is None:
            self.checked.thumbs[thumb.key] = thumb
        else:
            self.checked.repeated["thumbs"] += 1

    def add_judgment(self, judgment: JudgmentRecord, located: Located) -> None:
        pair_id = judgment.pair_id
        assert pair_id is not None
        if pair_id in self.pair_ids:
            digest, _ = self.pair_ids[pair_id]
        else:
            named = self.known.by_pair_id.get(pair_id, [])
            if not named:
                raise ValueError(f"there is no pair with pair_id {pair_id} in these files or in the project")
            if len(named) > 1:
                raise ValueError(
                    f"pair_id {pair_id} names {len(named)} pairs of the project; import judgments and pairs together"
                )
            digest = named[0]
        vote = self.vote(digest, judgment, located)
        self.require_room(digest, 1 if vote else 0)
        self.keep(digest, [vote] if vote else [], repeated=vote is None)

    def vote(self, digest: str, judgment: JudgmentRecord, located: Located) -> Vote | None:
        """Return the judgment as it will be stored; None if it exists already or its labeler was removed."""
        if self.is_removed(judgment.labeler, located):
            return None
        scale = self.scale_of(digest)
        preference = judgment.preference
        if preference is None:
            preference = judgment.side * ((scale.strengths + 1) // 2)
        if abs(preference) > scale.strengths:
            raise ValueError(f"preference {preference} is outside {_rubrics(scale)}")
        key = (digest, judgment.labeler)
        earlier, stored = self.checked.votes.get(key), self.known.judgments.get(key)
        said = Said(earlier.preference, earlier.record.rationale, earlier.aspects) if earlier else stored
        aspects = self.by_aspect(judgment, located, scale)
        if said is None:
            return Vote(judgment, preference, aspects)
        if said.preference != preference:
            name = judgment.labeler.name
            raise ValueError(f"{name} already answered this pair with {said.preference}, now with {preference}")
        new = (judgment.rationale or said.rationale, aspects or said.aspects)
        if new != (said.rationale, said.aspects):
            told = "The answer is already there with another rationale or other aspects; the first ones stay"
            self.contents[located.file].tell(told, located.line)
        return None

    def is_removed(self, labeler: Labeler, located: Located) -> bool:
        if labeler not in self.known.removed:
            return False
        told = f"{labeler.name} was removed from this project; their judgments were left out"
        self.contents[located.file].tell(told, located.line)
        return True

    def by_aspect(self, judgment: JudgmentRecord, located: Located, scale: Scale) -> dict[str, int]:
        """Return preferences by aspect, with the rubric's spelling of the names."""
        names, found = {_plain(name): name for name in scale.aspects}, {}
        for name, said in judgment.aspects.items():
            own = names.get(_plain(name))
            if own is None:
                told = f"The rubric has no aspect {name}; its ratings were left out"
                self.contents[located.file].tell(told, located.line)
                continue
            preference = said * ((scale.strengths + 1) // 2) if judgment.preference is None else said
            if abs(preference) > scale.strengths:
                raise ValueError(f"aspect {name}: {said} is outside {_rubrics(scale)}")
            found[own] = preference
        return found

    def require_room(self, digest: str, more: int) -> None:
        if self.votes_on[digest] + more > MAX_JUDGMENTS:
            raise ValueError(f"the pair has more than {MAX_JUDGMENTS:,} judgments")

    def keep(self, digest: str, votes: Sequence[Vote], repeated: int) -> None:
        self.votes_on[digest] += len(votes)
        self.checked.votes |= {(digest, vote.record.labeler): vote for vote in votes}
        self.checked.repeated["judgments"] += repeated


def _rubrics(scale: Scale) -> str:
    return f"the rubric's {-scale.strengths} to {scale.strengths}"


def _plain(name: str) -> str:
    """Normalize an aspect's name, which rubrics and data sets spell differently: `instruction_following`, “Instruction
    following”."""
    return "".join(character for character in name.casefold() if character.isalnum())
