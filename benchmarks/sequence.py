"""Simulate the table of docs/evaluation.md: `python -m benchmarks.sequence`. It takes a minute on one core.

The win rate is the probability that a person prefers the new policy. One person judges each prompt.
"""

import numpy as np

from app.domain.sequence import ALPHA, capital, hedged

RUNS = 4000
PROMPTS = (100, 200, 400)
WIN_RATES = (0.5, 0.55, 0.6, 0.65, 0.7, 0.8)
Z = 1.959964  # critical value of a two-sided test at 0.05


def table() -> str:
    """Return for each win rate how often each test shows a difference, and how many prompts the sequence needs."""
    lines = [
        "| win rate | test | "
        + " | ".join(f"within {n} prompts" if n == PROMPTS[0] else str(n) for n in PROMPTS)
        + " | prompts to a decision, median |",
        "|---|---|" + "---:|" * (len(PROMPTS) + 1),
    ]
    for rate in WIN_RATES:
        draws = np.random.default_rng(0).binomial(1, rate, (RUNS, PROMPTS[-1])).astype(float)
        first = np.array([_first(run) for run in draws])
        median = np.median(first)
        said = f"{median:.0f}" if median <= PROMPTS[-1] else f"over {PROMPTS[-1]}"
        n = np.arange(1, PROMPTS[-1] + 1)
        z = np.abs(draws.cumsum(1) - n / 2) / np.sqrt(n / 4) > Z
        rows = {
            "sequence, after every prompt": [(first <= n).mean() for n in PROMPTS],
            "z-test, once, at the end": [z[:, n - 1].mean() for n in PROMPTS],
            "z-test, after every prompt from the 10th on": [z[:, 9:n].any(1).mean() for n in PROMPTS],
        }
        for name, shares in rows.items():
            cells = " | ".join(f"{share:.1%}" for share in shares)
            lines.append(f"| {rate:.0%} | {name} | {cells} | {said if name.startswith('sequence') else ''} |")
    return "\n".join(lines)


def _first(run: np.ndarray) -> float:
    hits = np.flatnonzero(hedged(*capital(run)) >= -np.log(ALPHA))
    return float(hits[0] + 1) if hits.size else np.inf


if __name__ == "__main__":
    print(table())
