"""Preference optimisation without reinforcement learning: DPO (Rafailov et al. 2023) and its family.

The log-prob of a sequence is the sum over its completion's tokens. Losses are per row (B,): the caller weights and
averages them. Most losses depend on the policy only through the margin of log-ratios

h = (log pi(chosen) - log ref(chosen)) - (log pi(rejected) - log ref(rejected)).
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

PreferenceLoss = Literal["dpo", "robust", "ipo", "hinge", "kto", "orpo", "simpo"]
REFERENCE_FREE: frozenset[PreferenceLoss] = frozenset({"orpo", "simpo"})


class PairLogps(NamedTuple):
    """Log-probs and lengths in tokens of both completions of B pairs, all (2, B), chosen completions first.

    In KTO, a thumb up fills the first row and a thumb down the second. The other completion then has length 0.
    """

    policy: Tensor
    reference: Tensor | None  # None for losses in REFERENCE_FREE
    lengths: Tensor
    doubts: Tensor | float = 0.0  # (B,) probability that the rejected completion is better: soft labels of DPO

    @property
    def averages(self) -> Tensor:
        """Policy log-probs per token (2, B); 0 for an empty completion."""
        return average(self.policy, self.lengths)

    @property
    def log_ratios(self) -> Tensor:
        """log pi - log ref (2, B)."""
        if self.reference is None:
            raise ValueError("This loss compares the policy with a reference: give the reference's log-probs too.")
        return self.policy - self.reference


def average(sums: Tensor, lengths: Tensor) -> Tensor:
    """Divide sums over tokens by the number of tokens; an empty completion has the average 0."""
    return sums / lengths.clamp(min=1)


def preference_loss(
    name: PreferenceLoss,
    pairs: PairLogps,
    *,
    beta: float,
    label_smoothing: float = 0.0,
    length_average: bool = False,
    gamma: float = 0.5,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    kto_z: Tensor | None = None,
    nll_weight: float = 0.0,
) -> Tensor:
    """Return the loss (B,) called `name`; parameters that this loss does not have are ignored.

    Args:
        beta: strength of the KL penalty; tau in IPO, lambda in ORPO.
        length_average: IPO compares log-ratios per token, like TRL, instead of their sums, like the authors' code.
        kto_z: KTO's reference point () from `kto_reference_point`.
        nll_weight: weight of the chosen completion's NLL per token, added to any of the losses.
    """
    match name:
        case "dpo":
            # A label is wrong with probability `doubts`; smoothing then flips it with its own probability.
            flipped = pairs.doubts + (1 - 2 * pairs.doubts) * label_smoothing
            loss = dpo_loss(_margin(pairs.log_ratios), beta, flipped)
        case "robust":
            loss = robust_dpo_loss(_margin(pairs.log_ratios), beta, label_smoothing)
        case "ipo":
            ratios = average(pairs.log_ratios, pairs.lengths) if length_average else pairs.log_ratios
            loss = ipo_loss(_margin(ratios), beta)
        case "hinge":
            loss = hinge_loss(_margin(pairs.log_ratios), beta)
        case "kto":
            if kto_z is None:
                raise ValueError("KTO needs its reference point, kto_z.")
            liked = torch.tensor([[True], [False]], device=kto_z.device)
            losses = kto_loss(pairs.log_ratios, liked, kto_z, beta, desirable_weight, undesirable_weight)
            # The mean over responses: two thumbs make a pair, and a thumb without a partner counts as half a pair.
            loss = losses.where(pairs.lengths > 0, 0.0).sum(0) / 2
        case "orpo":
            loss = orpo_loss(pairs.averages[0], pairs.averages[1], beta)
        case "simpo":
            loss = simpo_loss(pairs.averages[0], pairs.averages[1], beta, gamma)
    return loss - nll_weight * pairs.averages[0] if nll_weight else loss  # RPO (Pang et al. 2024, eq. 1)


def preference_rewards(name: PreferenceLoss, pairs: PairLogps, beta: float) -> Tensor:
    """Return the rewards (2, B), detached, by which the loss called `name` ranks: the `rewards/...` metrics show them.

    beta log(pi / ref) is the reward a policy is optimal for, up to a function of the prompt (DPO, eq. 5).
    """
    rewards = pairs.averages if name in REFERENCE_FREE else pairs.log_ratios
    return beta * rewards.detach()


# ---- losses on the margin --------------------------------------------------------------------------------------------


def _margin(ratios: Tensor) -> Tensor:
    """Return the margin h (B,) of log-ratios (2, B)."""
    return ratios[0] - ratios[1]


def dpo_loss(h: Tensor, beta: float, label_smoothing: float | Tensor = 0.0) -> Tensor:
    """DPO loss (Rafailov et al. 2023, eq. 7) for margins h (B,); conservative DPO if `label_smoothing` is above 0.

    In cDPO (Mitchell 2023), e = `label_smoothing` is the share of wrong labels, or each label's probability of being
    wrong (B,). The loss is lowest at beta h = log((1 - e) / e).
    """
    # L = -(1 - e) log s(beta h) - e log s(-beta h)
    return -(1 - label_smoothing) * F.logsigmoid(beta * h) - label_smoothing * F.logsigmoid(-beta * h)


def robust_dpo_loss(h: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """Robust DPO loss (Chowdhury et al. 2024, eq. 12) for margins h (B,).

    If labels are flipped at rate e < 1/2, its mean equals the DPO loss on clean labels.
    """
    # L = [-(1 - e) log s(beta h) + e log s(-beta h)] / (1 - 2 e)
    kept, flipped = F.logsigmoid(beta * h), F.logsigmoid(-beta * h)
    return (label_smoothing * flipped - (1 - label_smoothing) * kept) / (1 - 2 * label_smoothing)


def ipo_loss(h: Tensor, tau: float) -> Tensor:
    """IPO loss (Azar et al. 2023, eq. 17): it pulls the margin to 1 / (2 tau), so certain labels do not overfit."""
    return (h - 1 / (2 * tau)) ** 2


def hinge_loss(h: Tensor, beta: float) -> Tensor:
    """SLiC's hinge loss (Zhao et al. 2023) on DPO's margin (Liu et al. 2024): no gradient beyond beta h = 1."""
    return F.relu(1 - beta * h)


# ---- losses that do not use the margin -------------------------------------------------------------------------------


def kto_reference_point(mismatched_log_ratios: Tensor) -> Tensor:
    """Return KTO's reference point z (), an estimate of KL(pi || ref) >= 0.

    The log-ratios (M,) are of completions after prompts they do not answer. The result is detached, as in the paper:
    the reference point of gains and losses is not learned. It belongs to a whole batch: if several processes or
    microbatches share the batch, gather their log-ratios first.
    """
    return mismatched_log_ratios.detach().mean().clamp(min=0)


def kto_loss(
    log_ratios: Tensor,
    desirable: Tensor,
    z: Tensor,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """KTO loss (Ethayarajh et al. 2024, eq. 8) of single responses.

    `log_ratios` are rho = log pi / ref (B,); `desirable` (B,) is True for liked responses.
    """
    # desirable: l_D (1 - s(beta (rho - z)));  undesirable: l_U (1 - s(beta (z - rho)));  1 - s(x) = s(-x)
    gain = beta * (log_ratios - z)
    return torch.where(desirable, desirable_weight * torch.sigmoid(-gain), undesirable_weight * torch.sigmoid(gain))


def orpo_loss(chosen_averages: Tensor, rejected_averages: Tensor, lam: float) -> Tensor:
    """ORPO loss (Hong et al. 2024, eqs. 6 and 7) for log-probs per token (B,): NLL plus odds ratio, no reference."""
    # L = -log P(c) - lambda log s(log odds(c) - log odds(r));  odds(P) = P / (1 - P), P the geometric mean of tokens
    return -chosen_averages - lam * F.logsigmoid(_log_odds(chosen_averages) - _log_odds(rejected_averages))


def _log_odds(logps: Tensor) -> Tensor:
    logps = logps.clamp(max=-1e-6)  # probability 1, as of an empty completion, has infinite odds
    # log(1 - e^x): each of the two forms is accurate in the range where the other is not
    complement = torch.where(logps > -0.693, torch.log(-torch.expm1(logps)), torch.log1p(-torch.exp(logps)))
    return logps - complement


def simpo_loss(chosen_averages: Tensor, rejected_averages: Tensor, beta: float, gamma: float) -> Tensor:
    """SimPO loss (Meng et al. 2024, eq. 6) for log-probs per token (B,): the difference must exceed gamma / beta."""
    # L = -log s(beta (avg_c - avg_r) - gamma)
    return -F.logsigmoid(beta * (chosen_averages - rejected_averages) - gamma)
