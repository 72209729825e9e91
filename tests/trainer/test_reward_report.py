import math
from collections.abc import Sequence

import numpy as np
import pytest
import statsmodels.api as sm
import torch
from statsmodels.stats.proportion import proportion_confint

from app.rows import PairRow
from app.specs import ModelRef, RewardSpec
from tests.trainer.conftest import user
from trainer.batching.chat import TokenSequence
from trainer.batching.data import Pair
from trainer.reward import probes
from trainer.reward.card import model_card, table
from trainer.reward.predictions import Said, measured
from trainer.reward.report import (
    Measured,
    Variants,
    decided_logit,
    head_figures,
    overfitting,
    pair_figures,
    probe_figures,
    probed_pairs,
    report_metrics,
    slice_metrics,
    split_figures,
)


def pair_of(number: int = 0, chosen: int = 2, rejected: int = 2, **row: object) -> Pair:
    """Return a pair whose B is better, with responses of these many tokens."""
    fields = {"comparison_id": number, "prompt_id": number, "messages": user("?"), "split": "heldout"}
    fields |= {"response_a": "worse one", "response_b": "better one", "preference": 1.0, "p_b": 0.8} | row
    built = PairRow(**fields)
    p = max(built.p_b, 1 - built.p_b)
    return Pair(TokenSequence([1], [5] * chosen), TokenSequence([1], [6] * rejected), p, built)


def measured_of(pairs: list[Pair], differences: list[float]) -> Measured:
    d = torch.tensor(differences)
    return Measured(pairs, torch.stack([d, torch.zeros_like(d)]), -torch.nn.functional.logsigmoid(d), d)


def test_accuracy_by_strength_and_slice_against_the_labelers() -> None:
    several = {"judgments": (1, 2, 3)}
    pairs = [
        pair_of(0, preference=0.4, agreement=0.75, slices={"domain": "x"}, **several),
        pair_of(1, preference=-1.5, p_b=0.1, agreement=0.5, weight=3.0, slices={"domain": "y"}, **several),
        pair_of(2, preference=3.0, agreement=1.0, slices={"domain": "y"}, judgments=(4,)),  # judged by one labeler only
        pair_of(3, preference=2.6, slices={"domain": "y"}),
    ]
    figures = pair_figures(measured_of(pairs, [1.0, -1.0, 1.0, 0.0]))
    assert {name: (f["pairs"], f["accuracy"]) for name, f in figures["by_strength"].items()} == {
        "1": (1, 1.0),
        "2": (1, 0.0),
        "3": (2, 0.75),
    }
    assert {name: (f["pairs"], f["accuracy"]) for name, f in figures["by_slice"].items()} == {
        "domain=x": (1, 1.0),
        "domain=y": (3, 0.5),
    }
    # Two pairs with weights 1 and 3: labelers (0.75 + 3 * 0.5) / 4. The model is right on one and wrong on the other.
    against = figures["against_labelers"]
    assert (against["pairs"], against["accuracy"], against["judged_by_several"]) == (4, 0.625, 2)
    assert against["labelers"] == pytest.approx(2.25 / 4)
    assert against["model"] == pytest.approx((0.75 + 3 * 0.5) / 4)
    assert figures["by_slice"]["domain=x"]["labelers"] == pytest.approx(0.75)
    assert figures["by_strength"]["3"]["labelers"] is None


def test_a_labeler_who_said_tie_agrees_with_neither_side() -> None:
    """Five said B, two A, and three said tie; the model is right, then wrong, then undecided."""
    pairs = [pair_of(i, agreement=0.5, opposed=0.2, judgments=tuple(range(10))) for i in range(3)]
    models = []
    for pair, d in zip(pairs, [1.0, -1.0, 0.0], strict=True):
        models.append(pair_figures(measured_of([pair], [d]))["against_labelers"])
    assert [figures["model"] for figures in models] == pytest.approx([0.5, 0.2, 0.35])
    assert [figures["labelers"] for figures in models] == pytest.approx([0.5] * 3)
    # Of 90 ordered pairs, 5 * 4 + 2 * 1 chose alike; with one of 3 undecided first and one of 7 second, half of 21.
    assert [figures["another"] for figures in models] == pytest.approx([(22 + 10.5) / 90] * 3)


def test_what_another_labeler_chose_is_counted_over_pairs_of_people() -> None:
    rows = [
        pair_of(0, agreement=2 / 3, opposed=1 / 3, judgments=(1, 2, 3), weight=2.0),  # 2 of 6 ordered pairs
        pair_of(1, agreement=1.0, opposed=0.0, judgments=(4, 5)),  # both of 2
        pair_of(2, agreement=0.5, opposed=0.5, judgments=(6, 7), weight=3.0),  # none of 2
        pair_of(3, agreement=0.9, opposed=0.1),  # the number of labelers is unknown
    ]
    figures = pair_figures(measured_of(rows, [1.0] * 4))["against_labelers"]
    assert figures["another"] == pytest.approx((2 * 2 / 6 + 1 + 3 * 0) / 6)
    assert pair_figures(measured_of(rows[3:], [1.0]))["against_labelers"]["another"] is None


def test_strengths_are_the_winners_and_up_to_four() -> None:
    pairs = [
        pair_of(0, preference=4.0),
        pair_of(1, preference=-3.6, p_b=0.1),
        pair_of(2, preference=2.5),
        pair_of(3, preference=-1.8, p_b=0.6),  # the few who said A gave a higher strength
    ]
    figures = pair_figures(measured_of(pairs, [1.0, -1.0, 1.0, 1.0]))
    assert {name: (f["pairs"], f["accuracy"]) for name, f in figures["by_strength"].items()} == {
        "1": (1, 1.0),
        "3": (1, 1.0),
        "4": (2, 0.5),
    }


def test_calibration_separability_and_length() -> None:
    tagged = {"slices": {"difficulty": "easy"}}
    pairs = [
        pair_of(0, chosen=210, rejected=10, **tagged),
        pair_of(1, chosen=10, rejected=110, **tagged),
        pair_of(2, chosen=20, rejected=20, agreement=0.6),
        pair_of(3, chosen=20, rejected=19, slices={"difficulty": "adversarial"}),
    ]
    d = [3.0, 1.0, 2.0, -1.0]
    figures = pair_figures(measured_of(pairs, d))
    s = [1 / (1 + math.exp(-abs(x))) for x in d]
    # |d| = 1 twice, right once: one bin. 2 and 3 are in separate bins.
    ece = (abs(0.5 - s[1]) * 2 + (1 - s[0]) + (1 - s[2])) / 4
    assert figures["calibration"]["ece"] == pytest.approx(ece, abs=1e-6)
    assert [(bar["pairs"], bar["accuracy"]) for bar in figures["calibration"]["reliability"]] == [
        (2, 0.5),
        (1, 1.0),
        (1, 1.0),
    ]
    # Easy 3 and 1: mean 2, standard deviation sqrt 2. Hard 2 and -1: mean 0.5, standard deviation 3 / sqrt 2.
    easy, hard = figures["separability"]["easy"], figures["separability"]["hard"]
    assert (easy["pairs"], easy["accuracy"], hard["pairs"], hard["accuracy"]) == (2, 1.0, 2, 0.5)
    assert easy["separability"] == pytest.approx(2 / 2**0.5)
    assert hard["separability"] == pytest.approx(0.5 / (3 / 2**0.5))
    # Length differences 200, -100, 0, 1: the model prefers the longer one in 1 of 3 pairs, people in 2 of 3.
    length = figures["length"]
    assert length["bias"] == pytest.approx(1 / 3 - 2 / 3)
    assert length["matched_accuracy"] == 0.5
    x = [2.0, -1.0, 0.0, 0.01]
    mean = sum(x) / 4
    slope = sum((a - mean) * b for a, b in zip(x, d, strict=True)) / sum((a - mean) ** 2 for a in x)
    assert length["slope_per_100_tokens"] == pytest.approx(slope, rel=1e-5)


def test_intervals_take_prompts_as_clusters() -> None:
    """Compare with statsmodels: accuracy and length bias are means with errors clustered by prompt."""
    generator = np.random.default_rng(0)
    pairs = [
        pair_of(i, prompt_id=i // 3, chosen=int(generator.integers(5, 40)), rejected=int(generator.integers(5, 40)))
        for i in range(120)
    ]
    d = generator.normal(0.5, 1.0, 120) + np.repeat(generator.normal(0, 0.7, 40), 3)
    figures = pair_figures(measured_of(pairs, d.tolist()))
    found = figures["intervals"]
    differ = [i for i, pair in enumerate(pairs) if len(pair.chosen.completion) != len(pair.rejected.completion)]
    longer = [len(pairs[i].chosen.completion) > len(pairs[i].rejected.completion) for i in differ]
    bias = [float((d[i] > 0) == is_longer) - is_longer for i, is_longer in zip(differ, longer, strict=True)]
    fitted = sm.OLS(bias, np.ones(len(bias))).fit(
        cov_type="cluster", cov_kwds={"groups": [pairs[i].row.prompt_id for i in differ]}, use_t=True
    )
    low, high = fitted.conf_int()[0]
    assert figures["length"]["bias"] == pytest.approx(fitted.params[0], abs=1e-6)
    assert found["length_bias"] == pytest.approx([low, high], abs=1e-4)
    # Wilson's interval for the number of independent pairs that would have the clustered variance.
    right = (d > 0).astype(float)
    error = sm.OLS(right, np.ones(120)).fit(cov_type="cluster", cov_kwds={"groups": np.arange(120) // 3}).bse[0]
    effective = right.mean() * (1 - right.mean()) / error**2
    expected = proportion_confint(right.mean() * effective, effective, method="wilson")
    assert found["accuracy"] == pytest.approx(list(expected), abs=1e-4)
    assert found["prompts"] == 40
    alike = [i for i, p in enumerate(pairs) if _alike(len(p.chosen.completion), len(p.rejected.completion))]
    assert found["matched_pairs"] == len(alike) > 0


def _alike(a: int, b: int) -> bool:
    return abs(a - b) <= 0.1 * max(a, b)


def test_the_gap_is_positive_where_training_pairs_do_better() -> None:
    train = split_figures(measured_of([pair_of(i) for i in range(4)], [5.0] * 4))
    heldout = split_figures(measured_of([pair_of(i) for i in range(4)], [5.0, 5.0, -1.0, -1.0]))
    assert (train["accuracy"], heldout["accuracy"]) == (1.0, 0.5)
    gap = overfitting(train, heldout)
    assert gap["accuracy"] == 0.5
    assert gap["loss"] == pytest.approx((math.log1p(math.exp(1)) - math.log1p(math.exp(-5))) / 2, rel=1e-5)
    nothing = overfitting(train, split_figures(measured_of([], [])))
    assert nothing == {"accuracy": None, "loss": None}
    assert slice_metrics(measured_of([], [])) == {}


def test_rao_kupper_pairs_that_are_decided_are_clearer_than_d() -> None:
    d, n = 0.7, 0.9
    chosen, rejected = 1 / (1 + math.exp(n - d)), 1 / (1 + math.exp(n + d))
    logit = decided_logit(torch.tensor([d, -d]), "rao_kupper", n)
    assert logit.tolist() == pytest.approx([math.log(chosen / rejected), -math.log(chosen / rejected)], rel=1e-5)
    assert decided_logit(torch.tensor([d]), "davidson", n).item() == pytest.approx(d)


def test_heads_are_measured_by_what_they_score() -> None:
    pairs = [
        pair_of(0, aspects={"style": 0.1}),  # B is better, A has the better style
        pair_of(1, p_b=0.1, preference=-1.0, aspects={"style": 0.3}),
        pair_of(2, p_b=0.5, preference=0.0, aspects={"style": 0.9}),  # a tie, but with a winner in style
        pair_of(3, aspects={"style": 0.5}),
    ]
    d = torch.tensor([[1.0, -1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, 1.0]])
    figures = head_figures(pairs, torch.stack([d, torch.zeros(4, 2)]), ("reward", "style"), [0])
    assert figures["reward"] == {"pairs": 3, "accuracy": pytest.approx(2 / 3)}
    assert figures["style"] == {"pairs": 3, "accuracy": pytest.approx(2 / 3)}


# ---- probes ----------------------------------------------------------------------------------------------------------


def length_scorer(variants: Sequence[Variants]) -> list[list[float | None]]:
    """A reward model that counts tens of characters and accepts up to 1000."""
    return [[len(text) / 10 if len(text) <= 1000 else None for text in texts] for _, texts in variants]


def test_probes_by_arithmetic_on_a_model_that_likes_length() -> None:
    pairs = [
        pair_of(0, response_a="I don't", response_b="I do nott"),  # 7 and 9 characters
        pair_of(1, response_a="No. Yes.", response_b="No, no. Yes.", p_b=0.2, preference=-1.0),  # A is better
    ]
    figures = probe_figures(pairs, length_scorer)
    assert (figures["pairs"], figures["too_long"]) == (2, 0)
    # Expanded, the worse answer of the first pair has 8 characters: still shorter. Nothing changes in the second pair.
    assert figures["invariance"]["contractions"] == {"pairs": 1, "flipped": 0.0, "mean_change": pytest.approx(0.1)}
    # A longer better answer (9 to 10, 8 to 9) or worse answer (7 to 8, 12 to 13) changes no order.
    newline = figures["invariance"]["trailing_newline"]
    assert newline == {"pairs": 2, "flipped": 0.0, "mean_change": pytest.approx(0.1)}
    # Bold adds 4 characters: 7 + 4 > 9 changes the first order; 8 + 4 = 12 is not more, but no longer less.
    bold = figures["invariance"]["bold"]
    assert (bold["pairs"], bold["flipped"]) == (2, 0.5)
    assert bold["mean_change"] == pytest.approx(0.4)
    assert figures["adversarial"]["repetition"]["wins"] == 1.0
    assert figures["adversarial"]["repetition"]["mean_change"] == pytest.approx(((2 + 9) / 10 + (2 + 8) / 10) / 2)
    refusal = (len(probes.REFUSAL) - 8.5) / 10
    assert figures["adversarial"]["refusal"]["mean_change"] == pytest.approx(refusal)


def test_what_a_rule_makes_too_long_is_left_out_of_that_rule_only() -> None:
    pairs = [
        pair_of(0, response_a="x" * 40, response_b="y" * 600),
        pair_of(1, response_a="x" * 40, response_b="y" * 50),
    ]
    figures = probe_figures(pairs, length_scorer)
    assert (figures["pairs"], figures["too_long"]) == (2, 1)
    assert figures["adversarial"]["repetition"] == {"prompts": 1, "wins": 1.0, "mean_change": pytest.approx(5.2)}
    padding = (2 + len(probes.PADDING)) / 10
    assert figures["adversarial"]["padding"] == {"prompts": 2, "wins": 1.0, "mean_change": pytest.approx(padding)}
    assert figures["invariance"]["trailing_newline"]["pairs"] == 2


def test_a_model_that_sees_nothing_is_won_over_by_nothing() -> None:
    figures = probe_figures([pair_of(0), pair_of(1)], lambda variants: [[0.0] * len(texts) for _, texts in variants])
    assert all(f["wins"] == 0 for f in figures["adversarial"].values())
    assert all(not f["mean_change"] for f in figures["invariance"].values())


def test_probed_pairs_are_of_different_prompts_and_within_what_training_took() -> None:
    pairs = [pair_of(i, prompt_id=i // 2) for i in range(1200)]
    everything = probed_pairs(pairs, 10**9, torch.Generator().manual_seed(0))
    assert len(everything) == 256
    assert len({pair.row.prompt_id for pair in everything}) == 256
    assert everything == probed_pairs(pairs, 10**9, torch.Generator().manual_seed(0))
    # 2 responses, 2 x 6 edits and 7 probes of 2 tokens each and a prompt of 1 token: 43 tokens per pair.
    some = probed_pairs([pair_of(i) for i in range(100)], 43 * 30, torch.Generator().manual_seed(0))
    assert len(some) == 30
    assert len(probed_pairs([pair_of(i) for i in range(100)], 0, torch.Generator().manual_seed(0))) == 16


# ---- the card --------------------------------------------------------------------------------------------------------


def report_of(measured: Measured, **changes: object) -> dict:
    figures = split_figures(measured)
    report = {
        "train": figures,
        "heldout": figures,
        "cross_fitted": None,
        "unseen": figures,
        "members": [],
        "epochs": [],
        "disagreement": None,
        "gap": overfitting(figures, figures),
        "ties": None,
        "heads": {"reward": {"pairs": 1, "accuracy": 1.0}},
        "model": {
            "base": "models/base",
            "members": 1,
            "heads": ["reward"],
            "gains": [0.5],
            "offsets": [0.125],
            "reference_samples": 300,
            "pooling": "last_valid_token",
        },
        "data": {
            "precision": "float32",
            "snapshot": "f00d",
            "train_pairs": 150,
            "train_elements": 25,
            "heldout_pairs": 4,
            "dropped": ["1 comparisons have weight 0: 7"],
            "notes": ["The base model has no chat template."],
        },
    }
    return report | changes


def test_the_card_holds_every_figure_and_only_names_what_was_measured() -> None:
    judged = {"agreement": 0.75, "judgments": (1, 2, 3, 4)}  # three for one side: 6 of 12 ordered pairs agree
    pairs = [pair_of(i, **judged, slices={"domain": "x|y"}) for i in range(4)]
    measured = measured_of(pairs, [2.0, 2.0, 2.0, -2.0])
    report = report_of(measured, **pair_figures(measured), probes=probe_figures(pairs, length_scorer))
    spec = RewardSpec(backbone=ModelRef(base="models/base"), snapshot="s", margin="small")
    card = model_card(spec, report)
    for line in (
        "| reward | 0.500 | 0.125 |",
        "| snapshot (SHA-256) | f00d |",
        "| margin | small |",
        "| precision | float32 |",
        "- 1 comparisons have weight 0: 7",
        "The base model has no chat template.",
        "| held out | 4 | 0.750 |",
        "With 4 comparisons, accuracy is uncertain by up to 49 percentage points",  # 1.96 * sqrt(1/4 / 4)
        "| domain=x\\|y | 4 | 0.750 | 4 | 0.750 | 0.500 | 0.625 |",  # the model: 3/4 of 0.75 and 1/4 of 0.25
        "| 0.881 | 0.750 | 4 |",  # s(2)
    ):
        assert line in card
    assert "Fewer than 256" not in card
    assert all(name in card for name in probes.DESCRIPTIONS)
    metrics = report_metrics(report)
    assert metrics["eval_accuracy_gap"] == 0
    assert metrics["eval_labeler_agreement"] == pytest.approx(0.75)
    assert metrics["eval_labeler_pair_agreement"] == pytest.approx(0.5)
    assert metrics["eval_model_agreement"] == pytest.approx(0.625)
    assert metrics["eval_probe_wins/repetition"] == 1
    assert "eval_separability_easy" not in metrics  # all four are hard
    assert metrics["eval_separability_hard"] == pytest.approx(1 / 2)  # mean 1, standard deviation 2


def test_without_held_out_pairs_the_card_says_that_nothing_is_known() -> None:
    report = report_of(measured_of([], []))
    card = model_card(RewardSpec(trunk="trained", backbone=ModelRef(base="b"), snapshot="s"), report)
    assert "it is not known how this model performs" in card
    assert "Probes" not in card
    assert report_metrics(report) == {}


def test_tables_are_markdown() -> None:
    assert table(["a", "b"], [["x\ny", 0.12345], [None, 3]]) == (
        "| a | b |\n| --- | --- |\n| x y | 0.123 |\n| – | 3 |\n"
    )


def test_what_an_ai_judge_said_trains_and_measures_nothing() -> None:
    """People judged two comparisons, and the model is right on one. Judges judged two, and it is wrong on both."""
    pairs = [pair_of(0), pair_of(1), pair_of(2, source="ai", split="train"), pair_of(3, source="ai", split="train")]
    rewards = torch.tensor([[1.0, -1.0, -1.0, -1.0], [0.0, 0.0, 0.0, 0.0]])[..., None]
    spec = RewardSpec(backbone=ModelRef(base="-"), snapshot="-", ensemble=1)
    found = measured(spec, Said(pairs, rewards, torch.ones(4, 1), None))
    assert [pair.row.comparison_id for pair in found.pairs] == [0, 1]
    assert split_figures(found)["accuracy"] == 0.5
