import math
from collections.abc import Iterator, Sequence

import pytest
import torch
from torch.distributed.tensor import DTensor

from app.rows import PairRow
from app.specs import ModelRef, RewardSpec
from tests.trainer.conftest import user
from trainer.batching.chat import TokenSequence
from trainer.batching.data import Pair
from trainer.reward.model import new_reward_model
from trainer.reward.objective import (
    RewardObjective,
    by_pair,
    elements_of,
    pair_losses,
    sides_of,
    targets_of,
    tie_start,
    weighted_loss,
)
from trainer.speed.sharding import shard


def spec_of(**changes: object) -> RewardSpec:
    return RewardSpec(trunk="trained", backbone=ModelRef(base="b"), snapshot="s", centering=0.0).model_copy(
        update=changes
    )


def pair_of(chosen: list[int], rejected: list[int], prompt: Sequence[int] = (1, 2, 3), **row: object) -> Pair:
    fields = {"comparison_id": 1, "prompt_id": 1, "messages": user("?"), "response_a": "a", "response_b": "b"}
    fields |= {"preference": 1.0, "p_b": 0.8, "split": "train"} | row
    built = PairRow(**fields)
    p = max(built.p_b, 1 - built.p_b)
    return Pair(TokenSequence(prompt, chosen), TokenSequence(prompt, rejected), p, built)


def test_a_ranking_holds_each_response_once_after_one_prompt() -> None:
    """The pair with the longest response has its prompt cut, and the whole ranking uses this cut prompt."""
    pairs = [
        pair_of([7], [8], ranking=5),
        pair_of([1], [2]),
        pair_of([9, 9], [7], prompt=[2, 3], ranking=5),
        pair_of([8], [9, 9], prompt=[2, 3], ranking=5),
        pair_of([7], [8], ranking=5, prompt_id=2),
    ]
    first, second, third = elements_of(pairs)
    assert first.pairs == (0, 2, 3)
    assert [(list(s.prompt), list(s.completion)) for s in first.sequences] == [
        ([2, 3], [7]),
        ([2, 3], [8]),
        ([2, 3], [9, 9]),
    ]
    assert first.sides == ((0, 1), (2, 0), (1, 2))
    assert (second.pairs, third.pairs) == ((1,), (4,))
    assert sides_of([first, second]).tolist() == [[0, 2, 1, 3], [1, 0, 2, 4]]
    rewards = torch.tensor([10.0, 20, 30, 40, 50, 60, 70])
    assert by_pair(rewards, [first, second, third]).tolist() == [[10, 40, 30, 20, 60], [20, 50, 10, 30, 70]]


def test_targets_by_hand() -> None:
    row = {"preference": -2.0, "p_b": 0.3, "p_tie": 0.2, "aspects": {"style": 0.9}}
    pairs = [pair_of([7], [8], **row), pair_of([7], [8], p_b=0.6)]

    def p_of(**changes: object) -> list[list[float]]:
        spec = spec_of(aspects=("style",), **changes)
        return targets_of(pairs, elements_of(pairs), spec).p.flatten(1).tolist()

    # Chosen is A: 0.7, including half of the ties. B has the better style, so style is against chosen.
    half = p_of()
    assert half[0] == pytest.approx([0.7, 0.3, 0, 0.1, 0.9, 0])
    assert half[1] == pytest.approx([0.6, 0.4, 0, 0, 0, 0])
    assert p_of(ties="davidson")[0] == pytest.approx([0.6, 0.2, 0.2, 0.1, 0.9, 0])
    assert p_of(ties="rao_kupper", soft_labels=False)[0] == [1, 0, 0, 0, 1, 0]
    smoothed = p_of(label_smoothing=0.1, ties="davidson")[0]
    assert smoothed == pytest.approx([0.9 * 0.6 + 0.1 * 0.2, 0.9 * 0.2 + 0.1 * 0.6, 0.2, 0.18, 0.82, 0])
    tied = [pair_of([7], [8], p_b=0.5, p_tie=0.9)]
    hard = targets_of(tied, elements_of(tied), spec_of(ties="davidson", soft_labels=False))
    assert hard.p.flatten().tolist() == [0, 0, 1]


@pytest.mark.parametrize(("soft", "share"), [(False, 0.9), (True, 0.74)])
def test_label_smoothing_flips_a_share_of_hard_and_of_soft_labels(soft: bool, share: float) -> None:
    """If 0.8 prefer chosen and one label in ten is flipped: 0.9 * 0.8 + 0.1 * 0.2. s(ln 3) is 3/4."""
    pairs, spec = [pair_of([7], [8], p_b=0.8)], spec_of(soft_labels=soft, label_smoothing=0.1)
    losses = pair_losses(
        torch.tensor([[[math.log(3)]], [[0.0]]]), targets_of(pairs, elements_of(pairs), spec), None, spec
    )
    assert losses.item() == pytest.approx(-share * math.log(3 / 4) - (1 - share) * math.log(1 / 4))


@pytest.mark.parametrize(("margin", "expected"), [("none", 0), ("small", 2 / 3), ("large", 2)])
def test_the_margin_is_of_the_strength_and_not_for_aspects(margin: str, expected: float) -> None:
    pairs = [pair_of([7], [8], preference=-2.0, p_b=0.1, aspects={"style": 0.2})]
    targets = targets_of(pairs, elements_of(pairs), spec_of(margin=margin, aspects=("style",)))
    assert targets.margin.tolist() == [[pytest.approx(expected), 0]]
    rewards = torch.tensor([[[1.5, 1.5]], [[0.5, 0.5]]])
    losses = pair_losses(rewards, targets, None, spec_of(margin=margin, aspects=("style",)))

    def s(d: float) -> float:
        return 1 / (1 + math.exp(-d))

    d = 1 - expected
    assert losses[0, 0].item() == pytest.approx(-0.9 * math.log(s(d)) - 0.1 * math.log(s(-d)))
    assert losses[0, 1].item() == pytest.approx(-0.8 * math.log(s(1)) - 0.2 * math.log(s(-1)))


def test_the_margin_is_the_winners() -> None:
    """Two prefer B slightly, one prefers A strongly: B wins with strength 0. Without a winner there is no strength."""
    pairs = [
        pair_of([7], [8], preference=-1 / 3, p_b=2.5 / 4),
        pair_of([7], [8], preference=1 / 3, p_b=1.5 / 4),
        pair_of([7], [8], preference=0.5, p_b=0.5),
        pair_of([7], [8], preference=-0.5, p_b=0.5),
        pair_of([7], [8], preference=-1.5, p_b=0.2),
    ]
    targets = targets_of(pairs, elements_of(pairs), spec_of(margin="large"))
    assert targets.margin.flatten().tolist() == [0, 0, 0, 0, 1.5]


@pytest.mark.parametrize("ties", ["rao_kupper", "davidson"])
def test_a_hard_label_of_a_pair_without_a_winner_is_a_tie(ties: str) -> None:
    """One vote for each side, and a majority for a tie."""
    pairs = [pair_of([7], [8], p_b=0.5, preference=0.0), pair_of([7], [8], p_b=0.625, p_tie=0.5, preference=0.5)]
    targets = targets_of(pairs, elements_of(pairs), spec_of(ties=ties, soft_labels=False))
    assert targets.p.flatten(1).tolist() == [[0, 0, 1], [0, 0, 1]]


def test_a_ranking_counts_as_often_as_comparisons_put_it_in_order_and_unrated_aspects_never() -> None:
    ranking = [pair_of([i], [j], ranking=1, weight=2.0) for i, j in ((1, 2), (1, 3), (2, 3))]
    pairs = [*ranking, pair_of([7], [8], aspects={"style": 0.9})]
    targets = targets_of(pairs, elements_of(pairs), spec_of(aspects=("style",)))
    # Three answers: two comparisons of weight 2, distributed over three pairs.
    torch.testing.assert_close(targets.share, torch.tensor([[4 / 3, 0], [4 / 3, 0], [4 / 3, 0], [1, 1]]))
    assert torch.equal(targets.weight, targets.share)
    # (4 / 3 (1 + 2 + 3) + 4) / 5 for the first head, 40 for the second; then their mean.
    losses = torch.tensor([[1.0, 10], [2, 20], [3, 30], [4, 40]])
    loss = weighted_loss(losses, targets.weight, targets.share.sum(0))
    assert loss.item() == pytest.approx(((4 / 3 * 6 + 4) / 5 + 40) / 2)
    assert weighted_loss(losses[:3], targets.weight[:3], targets.share[:3].sum(0)).item() == pytest.approx(2 / 2)


def test_a_tie_without_a_hard_label_counts_where_an_aspect_has_a_winner() -> None:
    """Two equally good responses, one of them with better style: in a ranking, and alone."""
    winner, tie = {"p_b": 0.8}, {"p_b": 0.5, "preference": 0.0, "aspects": {"style": 0.9}}
    pairs = [pair_of([1], [2], ranking=1, **winner), pair_of([1], [3], ranking=1, **tie), pair_of([2], [3], **tie)]
    targets = targets_of(pairs, elements_of(pairs), spec_of(aspects=("style",), soft_labels=False))
    assert targets.p.flatten(1).tolist() == [[1, 0, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0], [0, 0, 0, 1, 0, 0]]
    torch.testing.assert_close(targets.weight, torch.tensor([[2 / 3, 0], [0, 2 / 3], [0, 1]]))


def test_members_of_an_ensemble_weigh_elements_by_an_exponential_draw_of_their_own() -> None:
    pairs = [pair_of([1], [2 + i % 2], ranking=i // 2, prompt_id=i // 2) for i in range(4000)]
    elements = elements_of(pairs)
    spec = spec_of(ensemble=3, aspects=("style",))
    weight = targets_of(pairs, elements, spec).weight * 1.5  # three answers
    assert torch.equal(weight[::2], weight[1::2])
    assert weight[:, 3].tolist() == [0] * 4000
    draws = weight[::2, :3]
    # Mean 1, standard deviation 1, uncorrelated, within 4 standard errors (1 / sqrt n; 2 / sqrt n of the deviation).
    assert draws.mean(0).tolist() == pytest.approx([1] * 3, abs=4 / 2000**0.5)
    assert draws.std(0).tolist() == pytest.approx([1] * 3, abs=8 / 2000**0.5)
    assert torch.corrcoef(draws.T).fill_diagonal_(0).abs().max() < 4 / 2000**0.5
    again = targets_of(pairs, elements, spec).weight * 1.5
    assert torch.equal(weight, again)
    other = targets_of(pairs, elements, spec.model_copy(update={"seed": 1})).weight
    assert not torch.equal(weight, other * 1.5)
    assert targets_of(pairs, elements, spec_of()).weight.unique().tolist() == [pytest.approx(2 / 3)]


@pytest.mark.parametrize("share", [0.1, 0.4])
def test_the_tie_parameter_starts_where_equal_responses_tie_as_often_as_pairs_do(share: float) -> None:
    n = math.log1p(math.exp(tie_start("rao_kupper", share)))
    # Rao-Kupper at d = 0: 1 - 2 s(-n)
    assert 1 - 2 / (1 + math.exp(n)) == pytest.approx(share)
    nu = math.exp(tie_start("davidson", share))
    assert nu / (2 + nu) == pytest.approx(share)
    assert math.isfinite(tie_start("rao_kupper", 0.0))
    assert math.isfinite(tie_start("davidson", 1.0))


@pytest.mark.parametrize("ties", ["rao_kupper", "davidson"])
def test_the_tie_parameter_moves_fast_with_a_gradient_like_any_others(tiny_ref: ModelRef, ties: str) -> None:
    """If its gradient were scaled too, clipping by the norm would leave little of all other gradients."""
    objective = RewardObjective(new_reward_model(tiny_ref, None), ties, 0.3)
    start = objective.tie()
    assert start is not None
    # d tie / d raw: 1 for ln nu. For ln theta, a softplus n = log(1 + e^x), it is s(x) = 1 - e^-n.
    expected = 1 - math.exp(-start.item()) if ties == "rao_kupper" else 1
    gradient = torch.autograd.grad(start.sum(), objective.raw_ties[0])[0]
    assert gradient.tolist() == pytest.approx([expected])
    with torch.no_grad():
        objective.raw_ties[0] += 0.01
    moved = objective.tie()
    assert moved is not None
    raw = math.log(math.expm1(start.item())) if ties == "rao_kupper" else start.item()
    by_one = math.log1p(math.exp(raw + 1)) if ties == "rao_kupper" else raw + 1
    assert moved.item() == pytest.approx(by_one, rel=1e-5)


@pytest.fixture
def one_process() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=torch.distributed.HashStore())
    yield
    torch.distributed.destroy_process_group()


def test_the_tie_parameter_is_read_whole_where_weights_are_shared_out(tiny_ref: ModelRef, one_process: None) -> None:
    """Measurements between steps read it outside of a forward pass."""
    objective = RewardObjective(new_reward_model(tiny_ref, None, ("reward/0", "reward/1")), "davidson", 0.3)
    shard(objective, torch.device("cpu"), 1)
    assert isinstance(objective.raw_ties[0], DTensor)
    tie = objective.tie()
    assert tie is not None
    assert not isinstance(tie, DTensor)
    assert tie.tolist() == pytest.approx([math.log(2 * 0.3 / 0.7)] * 2)
