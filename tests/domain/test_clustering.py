"""Clustered covariances against arithmetic and statsmodels."""

from math import sqrt

import numpy as np
import pytest
import statsmodels.api as sm
from statsmodels.stats.sandwich_covariance import cov_cluster_2groups

from app.domain import rao_kupper
from app.domain.clustering import cluster_sums, covariances


def test_one_parameter_by_hand() -> None:
    """Scores 3, -1, -2, 0 of prompts 1, 1, 2, 2 and labelers 1, 2, 1, 2; the information is 2.

    By prompt the sums are 2 and -2: 2 / (2 - 1) * (4 + 4) = 16. By labeler they are 1 and -1: 2 * 2 = 4. Each judgment
    is a pair of its own: 4 / 3 * (9 + 1 + 4) = 56 / 3. All are divided by 2 * 2.
    """
    scores = np.array([[3.0], [-1.0], [-2.0], [0.0]])
    prompt, labeler = np.array([1, 1, 2, 2]), np.array([1, 2, 1, 2])
    assert cluster_sums(scores, prompt).tolist() == [[2.0], [-2.0]]
    found = covariances(np.array([[2.0]]), scores, prompt, labeler)
    assert [each.item() for each in found.each] == pytest.approx([1 / 2, 4, 1, (16 + 4 - 56 / 3) / 4])
    assert found.error(np.ones(1)) == pytest.approx(2)
    # Labelers are not used, and one prompt alone has no information, so the model's own error remains.
    alone = covariances(np.array([[2.0]]), scores, np.zeros(4, dtype=np.int64), None)
    assert [each.item() for each in alone.each] == pytest.approx([1 / 2, 0])
    assert alone.error(np.ones(1)) == pytest.approx(sqrt(1 / 2))


def test_statsmodels_finds_the_same_covariances() -> None:
    rng = np.random.default_rng(5)
    n, prompts, labelers = 300, 40, 9
    prompt, labeler = rng.integers(0, prompts, n), rng.integers(0, labelers, n)
    design = rng.normal(0, 1, (n, 3))
    eta = design @ [0.5, -0.3, 0.2] + rng.normal(0, 1, prompts)[prompt] + rng.normal(0, 0.5, labelers)[labeler]
    outcome = np.where(rng.random(n) < rao_kupper.sigmoid(eta), 1, -1)
    fit = rao_kupper.fit(design, outcome)
    assert fit is not None
    ours = covariances(fit.information, fit.scores, prompt, labeler).each
    theirs = sm.Logit((outcome > 0).astype(float), design).fit(disp=0, tol=1e-12)
    both, by_prompt, by_labeler = cov_cluster_2groups(theirs, prompt, labeler, use_correction=False)

    def correction(groups: int) -> float:
        return groups / (groups - 1)

    pairs = len(np.unique(np.stack([prompt, labeler]), axis=1).T)
    across = by_prompt + by_labeler - both
    assert ours[0] == pytest.approx(theirs.cov_params(), rel=1e-6)
    assert ours[1] == pytest.approx(by_prompt * correction(prompts), rel=1e-6)
    assert ours[2] == pytest.approx(by_labeler * correction(labelers), rel=1e-6)
    together = by_prompt * correction(prompts) + by_labeler * correction(labelers) - across * correction(pairs)
    assert ours[3] == pytest.approx(together, rel=1e-6, abs=1e-9)
