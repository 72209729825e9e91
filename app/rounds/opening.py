"""Opening comparisons: pairs or rankings of a prompt's responses, chosen by the project's pair selection policies."""

from collections.abc import Mapping
from itertools import combinations
from typing import NamedTuple

from sqlalchemy.orm import Session

from app.access import gate_queries
from app.documents import LabelingSettings
from app.domain.pairing import Choice, Sample, choose_pairs, choose_ranking, evaluation_pairs
from app.errors import Conflict
from app.labeling.opening import wanted
from app.models import Comparison, Completion, Project, Prompt, Ranking, Round, Run
from app.rounds import queries, stages
from app.rounds.forms import RoundConfig

# Comparisons of the new policy's own responses per held-out prompt. They only measure the reward model, which
# cross-fitting also measures on train prompts (`RewardSpec.folds`). More would take judgments away from training.
HELDOUT_PAIRS = 1
# Comparisons of policies per held-out prompt, in total. Several judgments on one prompt tell less than judgments on as
# many prompts.
EVALUATION_PAIRS = 2
PAIRS_PER_PROMPT: int = RoundConfig.model_fields["pairs_per_prompt"].default


class Opening(NamedTuple):
    """What all comparisons opened by a run have in common."""

    project: Project
    settings: LabelingSettings
    rubric_id: int
    round: Round | None
    limit: int  # comparisons per prompt

    @property
    def shares(self) -> dict[str, float]:
        return self.settings.pairs.model_dump()


def open_comparisons(session: Session, run: Run, by_prompt: Mapping[int, list[Completion]]) -> int:
    """Open comparisons of completed prompts' samples; return how many.

    Raises:
        Conflict: the project has no published rubric.
    """
    if not by_prompt:
        return 0
    project = session.get_one(Project, run.project_id)
    rubric = gate_queries.newest_rubric(session, project.id)
    if rubric is None:
        raise Conflict("The project has no published rubric.", "Publish a rubric, then retry.")
    round_ = session.get_one(Round, run.round_id) if run.round_id else None
    limit = RoundConfig.of(round_.config).pairs_per_prompt if round_ else PAIRS_PER_PROMPT
    settings = LabelingSettings.model_validate(project.labeling)
    opening = Opening(project, settings, rubric.id, round_, limit)
    prompts = queries.prompts_by_id(session, set(by_prompt))
    # Pairs with another policy measure people's preference only on held-out prompts, because the new policy was trained
    # on the others.
    heldout = {prompt_id for prompt_id in by_prompt if prompts[prompt_id].split == "heldout"}
    rivals = stages.rivals(round_) if round_ else ()
    older = {rival: queries.newest_completions(session, heldout, rival) for rival in rivals}

    opened = 0
    for prompt_id, completions in by_prompt.items():
        prompt = prompts[prompt_id]
        if prompt.split not in ("train", "heldout"):
            continue  # withdrawn or moved to another split since the run was created
        # If another policy was sampled too, its new responses replace its earlier ones.
        of = {rival: [each for each in completions if each.model_version_id == rival] for rival in rivals}
        said = [_samples(of[rival] or older[rival].get(prompt_id, [])) for rival in rivals]
        new = _samples([each for each in completions if each.model_version_id not in rivals])
        seed = run.id * 1_000_003 + prompt_id
        if prompt.split == "heldout":
            for choice in evaluation_pairs(new, said, EVALUATION_PAIRS, seed):
                opened += _add(session, opening, prompt, choice, "human_eval")
            opened += _open(session, opening, prompt, new, [], HELDOUT_PAIRS, {"random": 1.0}, seed)
        else:
            previous = said[0] if said else []
            opened += _open(session, opening, prompt, new, previous, opening.limit, opening.shares, seed)
    return opened


def _open(
    session: Session,
    opening: Opening,
    prompt: Prompt,
    new: list[Sample],
    old: list[Sample],
    limit: int,
    shares: Mapping[str, float],
    seed: int,
) -> int:
    size = opening.settings.ranking_size
    if size == 2:
        choices = choose_pairs(new, old, limit, shares, seed)
    else:
        ranking = choose_ranking(new, old, size, shares, seed)
        choices = [ranking] if ranking else []
    return sum(_add(session, opening, prompt, choice, prompt.split) for choice in choices)


def _add(session: Session, opening: Opening, prompt: Prompt, choice: Choice, purpose: str) -> int:
    """Add a pair, or a ranking with all its pairs. Only the first pair is offered, because its answer
    covers them all."""
    ranking_id = None
    if len(choice.ids) > 2:
        ranking = Ranking(project_id=opening.project.id, prompt_id=prompt.id, size=len(choice.ids))
        session.add(ranking)
        session.flush()
        ranking_id = ranking.id
    asked = wanted(opening.project, opening.settings, prompt, purpose, pair=f"{prompt.id}-{choice.ids}")
    pairs = [
        Comparison(
            project_id=opening.project.id,
            prompt_id=prompt.id,
            completion_a_id=min(pair),
            completion_b_id=max(pair),
            rubric_id=opening.rubric_id,
            round_id=opening.round.id if opening.round else None,
            purpose=purpose,
            overlap=asked.overlap,
            overlap_max=asked.most,
            ranking_id=ranking_id,
            offered=number == 0,
            selection=choice.selection,
            # The newest policy's responses are asked about first, because judgments on them teach it most.
            priority=opening.round.number if opening.round else 0,
        )
        for number, pair in enumerate(combinations(choice.ids, 2))
    ]
    for pair in pairs:
        session.add(pair)
        session.flush()  # assigns ids in this order: the offered pair has the lowest
    return len(pairs)


def _samples(completions: list[Completion]) -> list[Sample]:
    """Return the samples, with the scores of the reward model's heads if the worker computed them."""
    return [Sample(each.id, each.text, tuple(each.sampling.get("reward", {}).get("heads", ()))) for each in completions]
