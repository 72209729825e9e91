"""A second implementation of the formulas, slow and simple: Python loops over Python floats (64 bits), row by row.

It was written from the papers, not from `trainer.algorithms`, and shares no code with it.
"""

import math
from collections.abc import Callable, Sequence

# ---- log-probs -------------------------------------------------------------------------------------------------------


def log_prob(logits: Sequence[float], token: int, temperature: float = 1.0) -> float:
    """Return the log of softmax(logits / temperature) at a token."""
    scaled = [z / temperature for z in logits]
    top = max(scaled)
    return scaled[token] - top - math.log(math.fsum(math.exp(z - top) for z in scaled))


def entropy(logits: Sequence[float], temperature: float = 1.0) -> float:
    logps = [log_prob(logits, v, temperature) for v in range(len(logits))]
    return -math.fsum(math.exp(logp) * logp for logp in logps)


# ---- losses of one pair ----------------------------------------------------------------------------------------------


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def minus_log_sigmoid(x: float) -> float:
    return math.log1p(math.exp(-x)) if x >= 0 else math.log1p(math.exp(x)) - x


def log_odds(p: float) -> float:
    return math.log(p / (1 - p))


def pair_loss(
    name: str,
    policy: Sequence[float],
    reference: Sequence[float],
    lengths: Sequence[int],
    beta: float,
    e: float = 0.0,
    gamma: float = 0.5,
    z: float = 0.0,
    weights: Sequence[float] = (1.0, 1.0),
) -> float:
    """Return the loss of a pair from the summed log-probs and lengths of its completions, chosen first."""
    rho_c, rho_r = policy[0] - reference[0], policy[1] - reference[1]
    h = rho_c - rho_r
    a_c, a_r = (logp / max(n, 1) for logp, n in zip(policy, lengths, strict=True))
    if name == "dpo":
        return (1 - e) * minus_log_sigmoid(beta * h) + e * minus_log_sigmoid(-beta * h)
    if name == "robust":
        return ((1 - e) * minus_log_sigmoid(beta * h) - e * minus_log_sigmoid(-beta * h)) / (1 - 2 * e)
    if name == "ipo":
        return (h - 1 / (2 * beta)) ** 2
    if name == "ipo_average":
        return (rho_c / max(lengths[0], 1) - rho_r / max(lengths[1], 1) - 1 / (2 * beta)) ** 2
    if name == "hinge":
        return max(0.0, 1 - beta * h)
    if name == "kto":
        liked = weights[0] * (1 - sigmoid(beta * (rho_c - z)))
        disliked = weights[1] * (1 - sigmoid(beta * (z - rho_r)))
        return (liked + disliked) / 2
    if name == "orpo":
        return -a_c + beta * minus_log_sigmoid(log_odds(math.exp(a_c)) - log_odds(math.exp(a_r)))
    if name == "simpo":
        return minus_log_sigmoid(beta * (a_c - a_r) - gamma)
    raise AssertionError(name)


def tie_probabilities(kind: str, d: float, parameter: float) -> tuple[float, float, float]:
    """Return the probabilities of chosen, rejected and tie as in the papers, with worths exp(r), which can overflow."""
    chosen, rejected = math.exp(d), 1.0
    if kind == "rao_kupper":
        theta = math.exp(parameter)
        c, r = chosen / (chosen + theta * rejected), rejected / (rejected + theta * chosen)
        return c, r, 1 - c - r
    nu = math.exp(parameter)
    tie = nu * math.sqrt(chosen * rejected)
    total = chosen + rejected + tie
    return chosen / total, rejected / total, tie / total


# ---- PPO -------------------------------------------------------------------------------------------------------------


def policy_loss(
    new: Sequence[Sequence[float]], old: Sequence[Sequence[float]], advantages: Sequence[Sequence[float]], clip: float
) -> float:
    """Return the policy loss of ragged rows of tokens."""
    terms = []
    for new_row, old_row, advantage_row in zip(new, old, advantages, strict=True):
        for logp, old_logp, advantage in zip(new_row, old_row, advantage_row, strict=True):
            ratio = math.exp(logp - old_logp)
            terms.append(-min(advantage * ratio, advantage * min(max(ratio, 1 - clip), 1 + clip)))
    return math.fsum(terms) / len(terms)


def value_loss(
    new: Sequence[Sequence[float]], old: Sequence[Sequence[float]], returns: Sequence[Sequence[float]], clip: float
) -> float:
    """Return the value loss of ragged rows of tokens."""
    terms = []
    for new_row, old_row, return_row in zip(new, old, returns, strict=True):
        for value, old_value, target in zip(new_row, old_row, return_row, strict=True):
            near = old_value + min(max(value - old_value, -clip), clip)
            terms.append(max((value - target) ** 2, (near - target) ** 2) / 2)
    return math.fsum(terms) / len(terms)


# ---- gradients -------------------------------------------------------------------------------------------------------


def slope(function: Callable[[float], float], x: float, step: float = 1e-5) -> float:
    """Return the derivative by central differences, which is accurate to about nine digits here."""
    return (function(x + step) - function(x - step)) / (2 * step)
