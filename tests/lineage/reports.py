"""A reward model's report.json, as `trainer.recipes.reward` writes it."""

from typing import Any

NAMES = {
    "whitespace": "two spaces between sentences",
    "bold": "the first line in bold",
    "padding": "sentences without content added",
    "refusal": "a refusal instead of an answer",
}


def report(**changes: Any) -> dict[str, Any]:
    """Return the report of a good model, without anything to look at."""
    given: dict[str, Any] = {
        "train": {"pairs": 400, "accuracy": 0.9, "loss": 0.3},
        "heldout": {"pairs": 50, "accuracy": 0.78, "loss": 0.5},
        "unseen": {"pairs": 450, "accuracy": 0.8, "loss": 0.45},
        "intervals": {
            "prompts": 300,
            "accuracy": [0.76, 0.84],
            "length_bias": [-0.03, 0.05],
            "matched_accuracy": [0.7, 0.88],
            "matched_pairs": 90,
        },
        "calibration": {
            "ece": 0.03,
            "reliability": [
                {"confidence": 0.6, "accuracy": 0.62, "pairs": 150},
                {"confidence": 0.75, "accuracy": 0.74, "pairs": 150},
                {"confidence": 0.95, "accuracy": 0.92, "pairs": 150},
            ],
        },
        "length": {"bias": 0.01, "slope_per_100_tokens": 0.12, "matched_accuracy": 0.79},
        "probes": {
            "pairs": 200,
            "too_long": 0,
            "descriptions": NAMES,
            "invariance": {
                "whitespace": {"pairs": 200, "flipped": 0.01, "mean_change": 0.02},
                "bold": {"pairs": 100, "flipped": 0.06, "mean_change": 0.1},
            },
            "adversarial": {
                "padding": {"prompts": 200, "wins": 0.08, "mean_change": -0.5},
                "refusal": {"prompts": 20, "wins": 0.1, "mean_change": -1.5},
            },
        },
    }
    return given | changes
