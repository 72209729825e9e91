"""Select pairs of responses for people to judge.

Selection policies, mixed by shares:

- `random`: pairs spread evenly over the responses;
- `near_miss`: pairs with the closest rewards;
- `uncertain`: pairs whose reward difference the heads of the reward model disagree about most;
- `drts`, `delta_ucb`: pairs that may be the best and the worst response, by the heads' mean and spread (the optimistic
  rules of ActiveUltraFeedback, arXiv 2603.09692), so that judgments cover responses that the next policy will move to;
- `new_against_old`: a new policy's response against an older one's.

Pairs for human evaluation, which measure how often people prefer one policy to another, are separate: see
`evaluation_pairs`.

All functions are pure and seeded: the same samples and seed give the same pairs, so a resumed run opens the same pairs.
Two responses with the same text never form a pair, because there is nothing to prefer.
"""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations, islice
from statistics import fmean, pstdev, pvariance
from typing import Any, NamedTuple

from app.domain.shares import slots

# The order in which policies take their slots: specific policies before `random`.
POLICIES = ("new_against_old", "uncertain", "near_miss", "drts", "delta_ucb", "random")
EVALUATION = "evaluation"
SPREADS = 2.0  # number of standard deviations of the heads in the bounds of the optimistic rules
DRAWS = 20  # drts draws per possible pair: a pair that was never drawn is probably not worth a judgment
NOT_SCORED = "no reward model has scored the responses"
ONE_HEAD = "the reward model has a single head, which cannot disagree"
NO_OLDER = "there is no older response"
TOO_FEW = "all such pairs are taken"
PAIRS_ONLY = "it chooses pairs, not rankings"


class Sample(NamedTuple):
    """A response that may be shown: its completion's id, its text, and the rewards of the reward model's heads."""

    id: int
    text: str
    rewards: tuple[float, ...] = ()


Pair = tuple[int, int]


class Choice(NamedTuple):
    """A pair, or the responses of a ranking.

    Attributes:
        ids: ids of completions, ascending for a pair; the side shown first is drawn for each labeler.
        selection: the policy and its numbers. If the policy had no pair to choose, it is `random`, with the policy in
            `wanted` and the reason in `because`.
    """

    ids: tuple[int, ...]
    selection: dict[str, Any]


# ---- pairs -----------------------------------------------------------------------------------------------------------


def choose_pairs(
    new: Sequence[Sample], old: Sequence[Sample], limit: int, shares: Mapping[str, float], seed: int
) -> list[Choice]:
    """Choose at most `limit` pairs of one prompt's responses, with the policies in proportion to their shares.

    Args:
        old: responses of an earlier policy; only `new_against_old` uses them.
    """
    ordered = {policy: shares.get(policy, 0.0) for policy in POLICIES}
    everything = [pair for pair, _ in _candidates("random", new, old, seed)[0]]
    sources = {policy: _candidates(policy, new, old, seed) for policy in POLICIES}
    used: set[Pair] = set()
    chosen: list[Choice] = []

    def take(candidates: Iterable[tuple[Pair, dict[str, Any]]], selection: dict[str, Any]) -> bool:
        for pair, numbers in candidates:
            if pair not in used:
                used.add(pair)
                chosen.append(Choice(pair, selection | numbers))
                return True
        return False

    for policy in slots(ordered, limit, seed):
        candidates, because = sources[policy]
        if not take(candidates, {"policy": policy}):
            instead = {} if policy == "random" else {"wanted": policy, "because": because or TOO_FEW}
            take(((pair, {}) for pair in everything), {"policy": "random"} | instead)
    return chosen


def _candidates(
    policy: str, new: Sequence[Sample], old: Sequence[Sample], seed: int
) -> tuple[list[tuple[Pair, dict[str, Any]]], str]:
    """Return a policy's pairs, best first, with its numbers; or no pairs and the reason."""
    if policy == "random":
        return [(pair, {}) for pair in pairs_within(new, len(new) ** 2, seed)], ""
    if policy == "new_against_old":
        return [(pair, {}) for pair in pairs_across(new, old, len(new) * len(old), seed)], "" if old else NO_OLDER
    samples = _distinct(new)
    if not all(sample.rewards for sample in samples):
        return [], NOT_SCORED
    if policy != "near_miss" and any(len(sample.rewards) < 2 for sample in samples):
        return [], ONE_HEAD
    if policy == "drts":
        return _double_reverse_thompson(samples, seed), ""
    found: list[tuple[float, Pair, dict[str, Any]]] = []
    for a, b in combinations(samples, 2):
        rewards = [fmean(a.rewards), fmean(b.rewards)]
        if policy == "near_miss":
            gap = abs(rewards[0] - rewards[1])
            found.append((gap, (a.id, b.id), {"rewards": rewards, "gap": gap}))
        elif policy == "delta_ucb":
            # UCB_i - LCB_j, whichever of the two is i
            delta = abs(rewards[0] - rewards[1]) + SPREADS * (pstdev(a.rewards) + pstdev(b.rewards))
            found.append((-delta, (a.id, b.id), {"rewards": rewards, "delta": delta}))
        else:
            variance = pvariance([x - y for x, y in zip(a.rewards, b.rewards, strict=True)])
            found.append((-variance, (a.id, b.id), {"rewards": rewards, "variance": variance}))
    return [(pair, numbers) for _, pair, numbers in sorted(found, key=lambda each: each[:2])], ""


def _double_reverse_thompson(samples: Sequence[Sample], seed: int) -> list[tuple[Pair, dict[str, Any]]]:
    """Return pairs in the order in which double reverse Thompson sampling draws them.

    A draw consists of the argmax of r + b z s and the argmax of -r + b z s. r and s are mean and standard deviation
    over the heads, b is SPREADS. Each sample gets its own z, uniform in [-1, 1], in each draw.
    """
    generator = random.Random(f"drts {seed}")
    rewards = {sample.id: fmean(sample.rewards) for sample in samples}
    widths = {sample.id: SPREADS * pstdev(sample.rewards) for sample in samples}

    def draw(sign: int) -> int:
        return max(rewards, key=lambda id_: sign * rewards[id_] + generator.uniform(-1, 1) * widths[id_])

    found: dict[Pair, dict[str, Any]] = {}
    for _ in range(DRAWS * len(samples) * (len(samples) - 1) // 2):
        best, worst = draw(1), draw(-1)
        if best != worst:
            pair = (min(best, worst), max(best, worst))
            found.setdefault(pair, {"rewards": [rewards[pair[0]], rewards[pair[1]]]})
    return list(found.items())


def evaluation_pairs(new: Sequence[Sample], rivals: Sequence[Sequence[Sample]], limit: int, seed: int) -> list[Choice]:
    """Choose at most `limit` pairs of one prompt's new responses with responses of rival policies.

    The pairs are divided among the rivals that have answered, at least one for each. They depend only on the seed,
    because a pair that was selected for its expected outcome must not be used to measure.
    """
    answered = [rival for rival in rivals if rival]
    each = max(1, limit // max(1, len(answered)))
    return [
        Choice(pair, {"policy": EVALUATION})
        for number, rival in enumerate(answered)
        for pair in pairs_across(new, rival, each, seed + number)
    ]


def pairs_within(samples: Sequence[Sample], limit: int, seed: int) -> list[Pair]:
    """Return at most `limit` pairs of one prompt's samples; each sample is in about the same number of pairs.

    If samples have the same text, only the one with the lowest id is used. Ids in a pair are ascending.
    """
    ids = [sample.id for sample in _distinct(samples)]
    random.Random(seed).shuffle(ids)
    return list(islice(_tournament(ids), limit))


def pairs_across(new: Sequence[Sample], old: Sequence[Sample], limit: int, seed: int) -> list[Pair]:
    """Return at most `limit` pairs of a new policy's sample with an older one's, spread over both; texts must differ.

    Ids in a pair are ascending; the side shown first is drawn for each labeler.
    """
    news, olds = _distinct(new), _distinct(old)
    order = random.Random(seed)
    order.shuffle(news)
    order.shuffle(olds)
    met = ((a, olds[(i + shift) % len(olds)]) for shift in range(len(olds)) for i, a in enumerate(news))
    different = ((min(a.id, b.id), max(a.id, b.id)) for a, b in met if a.text.strip() != b.text.strip())
    return list(islice(different, limit))


def _distinct(samples: Sequence[Sample]) -> list[Sample]:
    first: dict[str, Sample] = {}
    for sample in sorted(samples):
        first.setdefault(sample.text.strip(), sample)
    return sorted(first.values())


def _tournament(ids: Sequence[int]) -> Iterator[Pair]:
    """Yield all pairs in the order of a round-robin tournament (circle method): each id once before any id twice."""
    players: list[int | None] = [*ids, *([None] if len(ids) % 2 else [])]  # with an odd number, one id pauses
    for _ in range(len(players) - 1):
        for i in range(len(players) // 2):
            a, b = players[i], players[-1 - i]
            if a is not None and b is not None:
                yield min(a, b), max(a, b)
        players.insert(1, players.pop())


# ---- rankings --------------------------------------------------------------------------------------------------------


def choose_ranking(
    new: Sequence[Sample], old: Sequence[Sample], size: int, shares: Mapping[str, float], seed: int
) -> Choice | None:
    """Choose at most `size` responses of one prompt for a ranking; None if fewer than two texts differ.

    One selection policy is drawn by the shares. `near_miss` takes the responses with the closest rewards, `uncertain`
    those that the heads disagree about most, `new_against_old` half of each.
    """
    ordered = {policy: shares.get(policy, 0.0) for policy in POLICIES}
    (policy,) = slots(ordered, 1, seed)
    samples, order = _distinct(new), random.Random(seed)
    order.shuffle(samples)
    because = ""
    if policy == "new_against_old":
        said = {sample.text.strip() for sample in samples}
        olds = [sample for sample in _distinct(old) if sample.text.strip() not in said]
        order.shuffle(olds)
        if olds:
            members = [*samples[: size - min(size // 2, len(olds))], *olds]
            return _ranking(members[:size], {"policy": policy})
        because = TOO_FEW if old else NO_OLDER
    elif policy in ("drts", "delta_ucb"):
        because = PAIRS_ONLY
    elif policy != "random" and not all(sample.rewards for sample in samples):
        because = NOT_SCORED
    elif policy == "near_miss":
        samples.sort(key=lambda sample: fmean(sample.rewards))
        windows = [samples[i : i + size] for i in range(max(1, len(samples) - size + 1))]
        samples = min(windows, key=lambda window: fmean(window[-1].rewards) - fmean(window[0].rewards))
        return _ranking(samples, {"policy": policy, "rewards": [fmean(sample.rewards) for sample in samples]})
    elif policy == "uncertain":
        if all(len(sample.rewards) > 1 for sample in samples):
            # A constant offset between heads does not affect the order, so subtract each head's own mean.
            means = [fmean(column) for column in zip(*(sample.rewards for sample in samples), strict=True)]
            spread = {s.id: pvariance([r - m for r, m in zip(s.rewards, means, strict=True)]) for s in samples}
            samples.sort(key=lambda sample: -spread[sample.id])
            samples = samples[:size]
            return _ranking(samples, {"policy": policy, "variances": [spread[sample.id] for sample in samples]})
        because = ONE_HEAD
    instead = {"wanted": policy, "because": because} if because else {}
    return _ranking(samples[:size], {"policy": "random"} | instead)


def _ranking(samples: Sequence[Sample], selection: dict[str, Any]) -> Choice | None:
    return Choice(tuple(sample.id for sample in samples), selection) if len(samples) > 1 else None
