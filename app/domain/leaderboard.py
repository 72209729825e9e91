"""A leaderboard of policies: their win rates against a reference, raw and length-controlled.

The model is that of app.domain.rao_kupper, with eta = strength of a - strength of b + covariates @ effects.

- The raw fit has one covariate: which response was shown first.
- The length-controlled fit adds (a - b) / (a + b) of tokens, headers, list items and bold passages. Each is divided by
  its root mean square, so an effect is that of a typical difference.

There is no penalty term. Win rates are computed with all covariates at 0: no response is first, longer or more
formatted (Dubois, Galambosi, Liang and Hashimoto 2024, Length-Controlled AlpacaEval, COLM).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from app.domain import rao_kupper
from app.domain.clustering import Covariances, covariances
from app.domain.connections import Arcs, components, reachable, strong_components
from app.domain.intervals import FEWEST, Interval, clustered_share
from app.domain.rao_kupper import Fit, Floats, sigmoid, win_rate, win_rate_slopes
from app.domain.student import quantile as student_quantile

STYLES = ("length", "headers", "lists", "bold")
COVARIATES = ("position", *STYLES)
LEAST_JUDGMENTS = 20  # minimum judgments between ranked policies, as for a round's verdict
# Minimum number of judgments other than ties, for each coefficient of the length-controlled fit, and for each covariate
# on pairs that differ in it. With fewer, unpenalised estimates are biased away from 0 (Peduzzi et al. 1996, Journal of
# Clinical Epidemiology 49), or they are infinite because all of the few judgments went the same way.
PER_COEFFICIENT = 10
GAP = 0.10  # difference of the raw and the length-controlled win rate that is worth a warning
INSEPARABLE = 1e-6  # a covariate is determined by the other columns if its residual is at most this share of its norm


class Matches(NamedTuple):
    """N judgments, each between responses of two policies; columns (N,).

    Attributes:
        a, b: ids of policies. outcome: 1 if a won, -1 if b won, 0 for a tie.
        position: 1 if a was shown first, -1 if b was, 0 if it is not known.
        style: (N, 4) relative differences between a and b, in the order of STYLES.
        prompt, labeler: ids; judgments with the same prompt or labeler are correlated.
    """

    a: NDArray[np.int64]
    b: NDArray[np.int64]
    outcome: NDArray[np.int64]
    position: Floats
    style: Floats
    prompt: NDArray[np.int64]
    labeler: NDArray[np.int64]

    def part(self, rows: NDArray[np.bool_]) -> "Matches":
        return self._replace(**{name: column[rows] for name, column in self._asdict().items()})


class Effect(NamedTuple):
    """The effect of a covariate.

    Attributes:
        wins: between equal policies, the win rate of the response with more of the covariate.
        typical: the difference at which `wins` is computed, the root mean square; 1 for the position.
    """

    name: str
    wins: Interval
    typical: float


class Standing(NamedTuple):
    """A ranked policy.

    Attributes:
        rank: 1 + the number of policies that are better by more than chance; policies with equal ranks are tied. None
            with fewer than FEWEST prompts.
        strength: log-odds against the reference; None with too few prompts.
        wins: the win rate against the reference; None with too few prompts.
        controlled: the win rate at equal length and formatting; None without a length-controlled fit.
        judgments, prompts: number of judgments and prompts with this policy.
    """

    policy: int
    rank: int | None
    strength: Interval | None
    wins: Interval | None
    controlled: Interval | None
    judgments: int
    prompts: int

    @property
    def gap(self) -> float:
        """The length-controlled win rate minus the raw one."""
        return self.controlled.value - self.wins.value if self.controlled and self.wins else 0.0

    @property
    def parts(self) -> bool:
        """Whether the two win rates differ by more than `GAP`."""
        return abs(self.gap) > GAP


class Separated(NamedTuple):
    """A policy whose difference from the ranked policies has no finite estimate.

    Attributes:
        side: 1 if it won every comparison that links it to the ranked policies, -1 if it lost all of them. 0 in other
            cases, for example if both won all comparisons with a third policy.
        judgments: number of judgments against ranked policies, which all went the same way.
        wins: the share that it won, with its interval.
    """

    policy: int
    side: int
    judgments: int
    wins: Interval | None


class Apart(NamedTuple):
    """Policies that no chain of comparisons connects with the ranked policies; comparing the pair `link` would."""

    policies: tuple[int, ...]
    link: tuple[int, int]


class Board(NamedTuple):
    """The leaderboard.

    Attributes:
        reference: the policy that the others are measured against.
        standings: best first; empty if there is a reason in `refused`.
        refused: few (too few judgments or prompts), ties (all judgments other than ties went the same way), position
            (the side on the screen decides everything), or "".
        ahead: win rate of the first policy against the second; None if fewer than two have an interval.
        uncontrolled: why there is no length-controlled fit: few (too few judgments), length (its effect cannot be
            separated from the policies), separated (an effect of length or formatting is infinite), or "" if there is
            a fit.
        left_out: covariates that are not fitted, and why: equal (no pair differs), few (too few judgments on responses
            that differ), inseparable (from the policies).
        judgments, prompts, labelers, ties: numbers between ranked policies.
        compared: policies with at least one judgment.
        by_labeler: whether standard errors are also clustered by labeler, which takes at least FEWEST labelers.
    """

    reference: int
    standings: list[Standing]
    ahead: Interval | None
    separated: list[Separated]
    apart: list[Apart]
    effects: list[Effect]
    left_out: dict[str, str]
    refused: str
    uncontrolled: str
    judgments: int
    prompts: int
    labelers: int
    ties: int
    compared: frozenset[int]
    by_labeler: bool


def board(matches: Matches, policies: Sequence[int], reference: int | None = None) -> Board:
    """Fit the leaderboard.

    Args:
        policies: all policies of the project, oldest first; at least one.
        reference: one of the policies. By default, the oldest policy of the group that can be ranked with most
            judgments.
    """
    arcs = _wins(matches)
    strong = strong_components(policies, arcs)
    if reference is None:
        reference = _default_reference(matches, strong, policies)
    ranked = next(group for group in strong if reference in group)
    groups = components(policies, arcs)
    connected = next(group for group in groups if reference in group)
    order = [policy for policy in policies if policy in ranked and policy != reference]
    within = matches.part(_among(matches, ranked))
    found = Board(
        reference=reference,
        standings=[],
        ahead=None,
        separated=[
            _separated(matches, policy, ranked, reference, arcs) for policy in policies if policy in connected - ranked
        ],
        apart=_apart(matches, [group for group in groups if group is not connected], ranked),
        effects=[],
        left_out={},
        refused="",
        uncontrolled="",
        judgments=len(within.a),
        prompts=len(np.unique(within.prompt)),
        labelers=len(np.unique(within.labeler)),
        ties=int((within.outcome == 0).sum()),
        compared=frozenset(np.concatenate([matches.a, matches.b]).tolist()),
        by_labeler=len(np.unique(within.labeler)) >= FEWEST,
    )
    if found.judgments < LEAST_JUDGMENTS or found.prompts < FEWEST:
        return found._replace(refused="few")
    return _ranked(found, within, order)


def _ranked(found: Board, within: Matches, order: list[int]) -> Board:
    """Return the board with its standings, from a raw fit and a fit with length and formatting."""
    policies = _incidence(within, order)
    typical = dict(zip(COVARIATES, (1.0, *np.sqrt((within.style**2).mean(axis=0)).tolist()), strict=True))
    columns = dict(zip(COVARIATES, np.column_stack([within.position, within.style]).T, strict=True))
    columns = {name: column / (typical[name] or 1.0) for name, column in columns.items()}
    left_out = _left_out(policies, columns, within.outcome)
    kept = [name for name in COVARIATES if name not in left_out]
    raw = _Reading.of(found, within, order, policies, {name: columns[name] for name in kept if name == "position"})
    if raw is None:
        finite = rao_kupper.fit(policies, within.outcome)
        return found._replace(refused="position" if finite else "ties", left_out=left_out)
    controlled, uncontrolled = None, ""
    if left_out.get("length") == "inseparable":
        uncontrolled = "length"
    elif found.judgments - found.ties < PER_COEFFICIENT * (len(order) + len(kept)):
        uncontrolled = "few"
    else:
        controlled = _Reading.of(found, within, order, policies, {name: columns[name] for name in kept})
        uncontrolled = "" if controlled else "separated"
    standings = _standings(found, within, raw, controlled)
    best = [each.policy for each in standings if each.rank is not None][:2]
    effects = controlled or raw
    return found._replace(
        standings=standings,
        ahead=raw.wins(best[0], best[1]) if len(best) == 2 else None,
        effects=[Effect(name, effects.effect(name), typical[name]) for name in effects.covariates],
        left_out=left_out,
        uncontrolled=uncontrolled,
    )


def _standings(found: Board, within: Matches, raw: "_Reading", controlled: "_Reading | None") -> list[Standing]:
    order = sorted(raw.prompts, key=lambda policy: (raw.prompts[policy] < FEWEST, -raw.strength(policy)))
    enough = [policy for policy in order if raw.prompts[policy] >= FEWEST]
    ranks = _ranks(enough, raw)
    standings = []
    for policy in order:
        told = policy in enough and found.reference in enough
        standings.append(
            Standing(
                policy=policy,
                rank=ranks.get(policy),
                strength=raw.difference(policy, found.reference) if told else None,
                wins=raw.wins(policy, found.reference) if told else None,
                controlled=controlled.wins(policy, found.reference) if controlled and told else None,
                judgments=int(_of(within, policy).sum()),
                prompts=raw.prompts[policy],
            )
        )
    return standings


def _ranks(order: list[int], raw: "_Reading") -> dict[int, int]:
    """Return ranks: 1 + the number of policies that are better by more than chance, but at least a stronger one's rank.

    Without the second rule, a policy with a wide interval could rank above stronger policies.
    """
    ranks: dict[int, int] = {}
    for place, policy in enumerate(order):
        better = sum(raw.difference(other, policy).low > 0 for other in order[:place])
        ranks[policy] = max([1 + better, *ranks.values()])
    return ranks


class _Reading(NamedTuple):
    """A fit with its standard errors. Parameters are strengths in `order` (the reference has 0), covariates and nu.

    Attributes:
        prompts: number of prompts that each policy was compared on; the reference first.
        clusters: the smallest number of clusters behind the standard errors.
    """

    fit: Fit
    errors: Covariances
    order: list[int]
    covariates: list[str]
    prompts: dict[int, int]
    clusters: int

    @classmethod
    def of(
        cls, found: Board, within: Matches, order: list[int], policies: Floats, columns: Mapping[str, Floats]
    ) -> "_Reading | None":
        fit = rao_kupper.fit(np.column_stack([policies, *columns.values()]), within.outcome)
        if fit is None:
            return None
        prompts = {policy: len(np.unique(within.prompt[_of(within, policy)])) for policy in (found.reference, *order)}
        labeler, clusters = None, found.prompts
        if found.by_labeler:
            labeler, clusters = within.labeler, min(found.prompts, found.labelers)
        errors = covariances(fit.information, fit.scores, within.prompt, labeler)
        return cls(fit, errors, order, list(columns), prompts, clusters)

    def strength(self, policy: int) -> float:
        return float(self.fit.coefficients[self.order.index(policy)]) if policy in self.order else 0.0

    def difference(self, policy: int, other: int) -> Interval:
        """Return the difference of two policies' strengths in log-odds."""
        value = self.strength(policy) - self.strength(other)
        half = self._quantile(policy, other) * self.errors.error(self._contrast(policy, other))
        return Interval(value, value - half, value + half)

    def wins(self, policy: int, other: int) -> Interval:
        eta = self.strength(policy) - self.strength(other)
        return self._win_rate(eta, self._contrast(policy, other), self._quantile(policy, other))

    def effect(self, name: str) -> Interval:
        place = len(self.order) + self.covariates.index(name)
        contrast = np.zeros(len(self.fit.information))
        contrast[place] = 1.0
        return self._win_rate(float(self.fit.coefficients[place]), contrast, self._quantile())

    def _win_rate(self, eta: float, contrast: Floats, quantile: float) -> Interval:
        """Return a win rate by the delta method on its log-odds, so that its bounds stay between 0 and 1."""
        value = float(win_rate(eta, self.fit.nu))
        by_eta, by_nu = win_rate_slopes(eta, self.fit.nu)
        slope = contrast * by_eta
        if len(slope) > len(self.fit.coefficients):
            slope[-1] = by_nu
        odds = np.log(value / (1 - value))
        half = quantile * self.errors.error(slope / (value * (1 - value)))
        low, high = sigmoid(np.array([odds - half, odds + half])).tolist()
        return Interval(value, low, high)

    def _contrast(self, policy: int, other: int) -> Floats:
        contrast = np.zeros(len(self.fit.information))
        for one, sign in ((policy, 1.0), (other, -1.0)):
            if one in self.order:
                contrast[self.order.index(one)] += sign
        return contrast

    def _quantile(self, *policies: int) -> float:
        """Return the quantile of Student's t, with degrees of freedom one less than the smallest number of clusters.

        Source: Cameron, Gelbach and Miller 2011, section 2.3.
        """
        return student_quantile(0.975, max(1, min([self.clusters, *(self.prompts[policy] for policy in policies)]) - 1))


def _incidence(matches: Matches, order: Sequence[int]) -> Floats:
    """Return (N, K): 1 where a policy is a, -1 where it is b."""
    names = np.array(order, dtype=np.int64)
    return (matches.a[:, None] == names).astype(np.float64) - (matches.b[:, None] == names)


def _left_out(design: Floats, columns: Mapping[str, Floats], outcome: NDArray[np.int64]) -> dict[str, str]:
    """Return covariates that cannot be fitted, and why (see `Board.left_out`).

    A covariate is inseparable if the policies and earlier covariates determine it.
    """
    found = {}
    for name, column in columns.items():
        if not column.any():
            found[name] = "equal"
            continue
        if np.count_nonzero(column[outcome != 0]) < PER_COEFFICIENT:
            found[name] = "few"
            continue
        solution, *_ = np.linalg.lstsq(design, column)
        if np.linalg.norm(column - design @ solution) <= INSEPARABLE * np.linalg.norm(column):
            found[name] = "inseparable"
        else:
            design = np.column_stack([design, column])
    return found


def _of(matches: Matches, policy: int) -> NDArray[np.bool_]:
    return (matches.a == policy) | (matches.b == policy)


def _among(matches: Matches, group: set[int]) -> NDArray[np.bool_]:
    names = np.array(sorted(group), dtype=np.int64)
    return np.isin(matches.a, names) & np.isin(matches.b, names)


def _wins(matches: Matches) -> dict[int, set[int]]:
    """Return arcs from the winner of each judgment to its loser; both ways for ties."""
    arcs: dict[int, set[int]] = {}
    for a, b, outcome in np.unique(np.column_stack(matches[:3]), axis=0).tolist():
        if outcome >= 0:
            arcs.setdefault(a, set()).add(b)
        if outcome <= 0:
            arcs.setdefault(b, set()).add(a)
    return arcs


def _default_reference(matches: Matches, groups: Sequence[set[int]], policies: Sequence[int]) -> int:
    def size(group: set[int]) -> tuple[int, int]:
        names = np.array(sorted(group), dtype=np.int64)
        either = np.isin(matches.a, names) | np.isin(matches.b, names)
        return int(_among(matches, group).sum()), int(either.sum())

    largest = max(groups, key=size)
    return next(policy for policy in policies if policy in largest)


def _separated(matches: Matches, policy: int, ranked: set[int], reference: int, arcs: Arcs) -> Separated:
    side = (reference in reachable(policy, arcs)) - (policy in reachable(reference, arcs))
    names = np.array(sorted(ranked), dtype=np.int64)
    as_a, as_b = (matches.a == policy) & np.isin(matches.b, names), (matches.b == policy) & np.isin(matches.a, names)
    direct = matches.part(as_a | as_b)
    _, cases = np.unique(direct.prompt, return_counts=True)
    wins = clustered_share([(n if side > 0 else 0.0, n) for n in cases.tolist()])
    return Separated(policy, side, len(direct.a), wins)


def _apart(matches: Matches, groups: Sequence[set[int]], ranked: set[int]) -> list[Apart]:
    def most_judged(group: set[int]) -> int:
        return max(group, key=lambda policy: (int(_of(matches, policy).sum()), policy))

    to = most_judged(ranked)
    return [Apart(tuple(sorted(group)), (most_judged(group), to)) for group in groups]
