"""The count of floating-point operations, against arithmetic and torch's own counter."""

from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaForCausalLM

from benchmarks.floor import Costs, Work, pairs_of, work_of
from tests.trainer.conftest import build_model


def test_a_prompt_is_read_once_for_all_its_answers() -> None:
    # A prompt of 3 attends 1 + 2 + 3 times. After it, an answer of 2 attends 4 + 5 times, and an answer of 1 4 times.
    assert work_of([(3, [2, 1])]) == Work(tokens=6, predicted=3, attended=6 + 9 + 4)
    assert work_of([(3, [2]), (3, [1])]) == Work(tokens=9, predicted=3, attended=6 + 9 + 6 + 4)


def test_pairs_are_taken_from_all_prompts_in_turn() -> None:
    groups = [(3, [1, 2, 3, 4]), (5, [6, 7, 8])]
    assert pairs_of(groups, 3) == [(3, [1, 2]), (5, [6, 7]), (3, [3, 4])]
    assert len(pairs_of(groups, 2)) == 2


def test_the_cost_of_a_pass_is_what_torch_counts(tmp_path: Path) -> None:
    build_model(tmp_path)
    model, tokens = LlamaForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval(), 50
    costs = Costs.of(model)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.arange(tokens)[None], use_cache=False)
    # Without a causal kernel, every token is multiplied with every other token.
    assert counter.get_total_flops() == costs.forward(Work(tokens, tokens, tokens**2))
