"""Preference optimisation without reinforcement learning: DPO (Rafailov et al. 2023) and its family.

Log-probs of a sequence are sums over its completion's tokens. Losses are per row (B,), so that the caller weighs and
averages. In most of them the policy enters through the margin of log-ratios

h = (log pi(chosen) - log ref(chosen)) - (log pi(rejected) - log ref(rejected)).
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

PreferenceLoss = Literal["dpo", "robust", "ipo", "hinge", "kto", "orpo", "simpo"]
REFERENCE_FREE: frozenset[PreferenceLoss] = frozenset({"orpo", "simpo"})


class PairLogps(NamedTuple):
    """Log-probs and lengths in tokens of both completions of B pairs, all (2, B), the chosen ones first.

    In KTO a thumb fills the row of its kind and has no rival: the rival's length is 0.
    """

    policy: Tensor
    reference: Tensor | None  # None for losses in REFERENCE_FREE
    lengths: Tensor
    doubts: Tensor | float = 0.0  # (B,) how probably the rejected completion is the better one: soft labels of DPO

    @property
    def averages(self) -> Tensor:
        """Policy log-probs a token (2, B); 0 where a completion is empty."""
        return average(self.policy, self.lengths)

    @property
    def log_ratios(self) -> Tensor:
        """log pi - log ref (2, B)."""
        if self.reference is None:
            raise ValueError("This loss compares the policy with a reference: give the reference's log-probs too.")
        return self.policy - self.reference


def average(sums: Tensor, lengths: Tensor) -> Tensor:
    """Sums over tokens divided by their number; an empty completion has the sum 0 and the average 0."""
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
    """The loss (B,) of that name; parameters that it does not have are ignored.

    Args:
        beta: strength of the leash; tau of IPO, lambda of ORPO.
        length_average: IPO compares log-ratios a token, as TRL does, instead of their sums, as its authors' code did.
        kto_z: KTO's reference point () from `kto_reference_point`.
        nll_weight: weight of the chosen completion's NLL a token, added to any of the losses.
    """
    match name:
        case "dpo":
            # A label is wrong as probably as the labelers doubt it, and flipped once more at the rate of smoothing.
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
            # A mean over responses: two thumbs are a pair, and where a thumb has no rival it counts half of one.
            loss = losses.where(pairs.lengths > 0, 0.0).sum(0) / 2
        case "orpo":
            loss = orpo_loss(pairs.averages[0], pairs.averages[1], beta)
        case "simpo":
            loss = simpo_loss(pairs.averages[0], pairs.averages[1], beta, gamma)
    return loss - nll_weight * pairs.averages[0] if nll_weight else loss  # RPO (Pang et al. 2024, eq. 1)


def preference_rewards(name: PreferenceLoss, pairs: PairLogps, beta: float) -> Tensor:
    """The rewards (2, B), detached, that the loss of that name ranks by: what `rewards/...` metrics show.

    beta log(pi / ref) is the reward a policy is optimal for, up to a function of the prompt (DPO, eq. 5).
    """
    rewards = pairs.averages if name in REFERENCE_FREE else pairs.log_ratios
    return beta * rewards.detach()


# ---- losses on the margin --------------------------------------------------------------------------------------------


def _margin(ratios: Tensor) -> Tensor:
    """h (B,) of log-ratios (2, B)."""
    return ratios[0] - ratios[1]


def dpo_loss(h: Tensor, beta: float, label_smoothing: float | Tensor = 0.0) -> Tensor:
    """DPO (Rafailov et al. 2023, eq. 7) of margins h (B,); conservative DPO where labels flip with that probability.

    cDPO (Mitchell 2023): e is the share of labels believed wrong, or (B,) the probability that this one is; its minimum
    is at beta h = log((1 - e) / e).
    """
    # L = -(1 - e) log s(beta h) - e log s(-beta h)
    return -(1 - label_smoothing) * F.logsigmoid(beta * h) - label_smoothing * F.logsigmoid(-beta * h)


def robust_dpo_loss(h: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """Robust DPO (Chowdhury et al. 2024, eq. 12): over labels flipped at rate e < 1/2 its mean is DPO's clean loss."""
    # L = [-(1 - e) log s(beta h) + e log s(-beta h)] / (1 - 2 e)
    kept, flipped = F.logsigmoid(beta * h), F.logsigmoid(-beta * h)
    return (label_smoothing * flipped - (1 - label_smoothing) * kept) / (1 - 2 * label_smoothing)


def ipo_loss(h: Tensor, tau: float) -> Tensor:
    """IPO (Azar et al. 2023, eq. 17): a margin of 1 / (2 tau) and no more, so that certain labels do not overfit."""
    return (h - 1 / (2 * tau)) ** 2


def hinge_loss(h: Tensor, beta: float) -> Tensor:
    """SLiC's hinge (Zhao et al. 2023) on DPO's margin (Liu et al. 2024): no gradient beyond beta h = 1."""
    return F.relu(1 - beta * h)


# ---- losses of their own ---------------------------------------------------------------------------------------------


def kto_reference_point(mismatched_log_ratios: Tensor) -> Tensor:
    """z () of log-ratios (M,) of completions after prompts they do not answer: an estimate of KL(pi || ref) >= 0.

    Detached, as in the paper: the point from which gains and losses are felt is not itself learned. Over a whole batch:
    where several processes or microbatches share it, gather their log-ratios first.
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
    """KTO (Ethayarajh et al. 2024, eq. 8) of single responses: rho = log pi / ref (B,), liked or not (B,) bool."""
    # desirable: l_D (1 - s(beta (rho - z)));  undesirable: l_U (1 - s(beta (z - rho)));  1 - s(x) = s(-x)
    gain = beta * (log_ratios - z)
    return torch.where(desirable, desirable_weight * torch.sigmoid(-gain), undesirable_weight * torch.sigmoid(gain))


def orpo_loss(chosen_averages: Tensor, rejected_averages: Tensor, lam: float) -> Tensor:
    """ORPO (Hong et al. 2024, eqs. 6 and 7) of log-probs a token (B,): NLL and the odds ratio, without a reference."""
    # L = -log P(c) - lambda log s(log odds(c) - log odds(r));  odds(P) = P / (1 - P), P the geometric mean of tokens
    return -chosen_averages - lam * F.logsigmoid(_log_odds(chosen_averages) - _log_odds(rejected_averages))


def _log_odds(logps: Tensor) -> Tensor:
    logps = logps.clamp(max=-1e-6)  # certainty, an empty completion's too, has infinite odds
    # log(1 - e^x): each form loses its digits where the other keeps them
    complement = torch.where(logps > -0.693, torch.log(-torch.expm1(logps)), torch.log1p(-torch.exp(logps)))
    return logps - complement


def simpo_loss(chosen_averages: Tensor, rejected_averages: Tensor, beta: float, gamma: float) -> Tensor:
    """SimPO (Meng et al. 2024, eq. 6) of log-probs a token (B,): their difference must exceed gamma / beta."""
    # L = -log s(beta (avg_c - avg_r) - gamma)
    return -F.logsigmoid(beta * (chosen_averages - rejected_averages) - gamma)
