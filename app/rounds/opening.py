"""Opening what people are asked about: pairs or rankings of a prompt's responses, chosen by the project's policies."""

from collections.abc import Mapping
from itertools import combinations
from typing import NamedTuple

from sqlalchemy.orm import Session

from app.access import gate_queries
from app.domain.pairing import Choice, Sample, choose_pairs, choose_ranking
from app.errors import Conflict
from app.judging import LabelingSettings
from app.labeling.opening import wanted
from app.models import Comparison, Completion, Project, Prompt, Ranking, Round, Run
from app.rounds import queries
from app.rounds.forms import RoundConfig

# Comparisons on a held-out prompt that has no older policy's responses. They only measure the reward model, and
# cross-fitting measures it on the train prompts too (`RewardSpec.folds`). More would take judgments from training.
HELDOUT_PAIRS = 1
PAIRS_PER_PROMPT: int = RoundConfig.model_fields["pairs_per_prompt"].default


class Opening(NamedTuple):
    """What is the same for all that a run opens."""

    project: Project
    settings: LabelingSettings
    rubric_id: int
    round: Round | None
    limit: int  # comparisons a prompt

    @property
    def shares(self) -> dict[str, float]:
        return self.settings.pairs.model_dump()


def open_comparisons(session: Session, run: Run, by_prompt: Mapping[int, list[Completion]]) -> int:
    """Opens comparisons of completed prompts' samples; returns how many.

    Raises:
        Conflict: the project has no published rubric.
    """
    if not by_prompt:
        return 0
    project = session.get_one(Project, run.project_id)
    rubric = gate_queries.newest_rubric(session, project.id)
    if rubric is None:
        raise Conflict("The project has no published rubric.", "Publish one, then retry.")
    round_ = session.get_one(Round, run.round_id) if run.round_id else None
    limit = RoundConfig.of(round_.config).pairs_per_prompt if round_ else PAIRS_PER_PROMPT
    settings = LabelingSettings.model_validate(project.labeling)
    opening = Opening(project, settings, rubric.id, round_, limit)
    prompts = queries.prompts_by_id(session, set(by_prompt))
    # Only on held-out prompts do pairs with the older policy tell how often people prefer the new one: it was trained
    # on the others.
    heldout = {prompt_id for prompt_id in by_prompt if prompts[prompt_id].split == "heldout"}
    older = queries.newest_completions(session, heldout, round_.policy_before_id) if round_ else {}

    opened = 0
    for prompt_id, completions in by_prompt.items():
        if prompts[prompt_id].split not in ("train", "heldout"):
            continue  # withdrawn, or kept for something else, since the run was made
        # Where the previous policy was sampled too, what it says now stands in place of what it said before.
        before_id = round_.policy_before_id if round_ else None
        old = [each for each in completions if each.model_version_id == before_id] or older.get(prompt_id, [])
        new = [each for each in completions if each.model_version_id != before_id]
        seed = run.id * 1_000_003 + prompt_id
        opened += _open(session, opening, prompts[prompt_id], new, old, seed)
    return opened


def _open(
    session: Session, opening: Opening, prompt: Prompt, new: list[Completion], old: list[Completion], seed: int
) -> int:
    samples, older, shares = _samples(new), _samples(old), opening.shares
    size = opening.settings.ranking_size
    if size == 2:
        only_measures = prompt.split == "heldout" and not old
        choices = choose_pairs(samples, older, HELDOUT_PAIRS if only_measures else opening.limit, shares, seed)
    else:
        ranking = choose_ranking(samples, older, size, shares, seed)
        choices = [ranking] if ranking else []
    is_old = {completion.id for completion in old}
    return sum(_add(session, opening, prompt, choice, is_old) for choice in choices)


def _add(session: Session, opening: Opening, prompt: Prompt, choice: Choice, is_old: set[int]) -> int:
    """A pair, or a ranking with all its pairs, of which the first is offered: its answer is about all of them."""
    ranking_id = None
    if len(choice.ids) > 2:
        ranking = Ranking(project_id=opening.project.id, prompt_id=prompt.id, size=len(choice.ids))
        session.add(ranking)
        session.flush()
        ranking_id = ranking.id
    # One labeler judges all of them at once, so all ask for as many as the first.
    first_purpose = _purpose(prompt, choice.ids[0] in is_old, choice.ids[1] in is_old)
    asked = wanted(opening.project, opening.settings, prompt, first_purpose, pair=f"{prompt.id}-{choice.ids}")
    pairs = [
        Comparison(
            project_id=opening.project.id,
            prompt_id=prompt.id,
            completion_a_id=min(pair),
            completion_b_id=max(pair),
            rubric_id=opening.rubric_id,
            round_id=opening.round.id if opening.round else None,
            purpose=_purpose(prompt, pair[0] in is_old, pair[1] in is_old),
            overlap=asked.overlap,
            overlap_max=asked.most,
            ranking_id=ranking_id,
            offered=number == 0,
            selection=choice.selection,
            # The newest policy's responses are asked about first: judgments of them teach it most.
            priority=opening.round.number if opening.round else 0,
        )
        for number, pair in enumerate(combinations(choice.ids, 2))
    ]
    for pair in pairs:
        session.add(pair)
        session.flush()  # ids in this order: the offered one has the lowest
    return len(pairs)


def _purpose(prompt: Prompt, a_is_old: bool, b_is_old: bool) -> str:
    if prompt.split != "heldout":
        return "train"
    return "human_eval" if a_is_old != b_is_old else "heldout"


def _samples(completions: list[Completion]) -> list[Sample]:
    """With what the reward model's heads said, where the worker asked them."""
    return [Sample(each.id, each.text, tuple(each.sampling.get("reward", {}).get("heads", ()))) for each in completions]
