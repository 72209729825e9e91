"""Mix demonstrations into PPO so that the policy does not forget them: PPO-ptx (Ouyang et al. 2022, eq. 2)."""

from pathlib import Path

import torch
from torch import Tensor

from app.errors import InvalidInput
from trainer.batching.chat import ChatEncoder
from trainer.batching.data import encode_demonstrations, read_demonstrations
from trainer.batching.packing import pack
from trainer.processes import device, sum_over_processes
from trainer.sampling.generation import Tick
from trainer.training.experience import DEMONSTRATIONS, in_turn
from trainer.training.training import Training

EPISODES_A_DEMONSTRATION = 4  # in a minibatch: demonstrations should stabilise the policy, not dominate training


class Mix:
    """Demonstrations whose NLL per token is added to the loss of every step.

    Attributes:
        dropped: sentences that say why demonstrations were left out.
    """

    def __init__(self, path: Path, encoder: ChatEncoder, coefficient: float, batch_size: int, pad_id: int) -> None:
        """Raises InvalidInput if a line is invalid or no demonstration is left to train on."""
        self.coefficient, self.pad_id = coefficient, pad_id
        encoded = encode_demonstrations(read_demonstrations(path), encoder)
        self.sequences = [demonstration.sequence for demonstration in encoded.train]
        self.dropped = encoded.dropped
        if not self.sequences:
            raise InvalidInput(
                f"{path.name} holds no demonstration to train on. {' '.join(self.dropped)}",
                "Choose other demonstrations, or none.",
            )
        self.weights = torch.tensor([demonstration.row.weight for demonstration in encoded.train])
        self.number = min(len(self.sequences), -(-batch_size // EPISODES_A_DEMONSTRATION))

    def accumulate(self, training: Training, share: bool, tick: Tick) -> float:
        """Add the gradients of the next few demonstrations to this step, and return their NLL per token.

        Call it before the episodes' gradients are accumulated: processes exchange both together.
        """
        turns = in_turn(
            len(self.sequences),
            training.steps * self.number,
            self.number,
            lambda turn: training.generator(DEMONSTRATIONS, turn),
        )
        chosen = [i for i, _turn in turns]
        weights = [float(self.weights[i]) * len(self.sequences[i].completion) for i in chosen]
        lengths = [sequence.length for sequence in self.sequences]
        total = torch.zeros(1)
        with training.accelerator.no_sync(training.model):
            for part in training.parts(chosen, lengths):
                tick()
                packed = pack([self.sequences[i] for i in part.rows], self.pad_id, share).to(device())
                logps = training.model(packed).logps
                token_weights: Tensor = self.weights[part.rows].to(logps.device)[packed.owners]
                nll = -(token_weights * logps).sum() / sum(weights)
                training.backward(self.coefficient * nll, part)
                if part.counts:
                    total += nll.detach().cpu()
        return float(sum_over_processes(total))
