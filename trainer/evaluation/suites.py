"""Suites: fixed sets of test cases that a policy and the previous policy answer (`app.domain.cases`).

Answers are greedy: each token is the most likely one. So a score does not depend on sampling, and an unchanged policy
gets the same score again. Some cases ask which of two given answers is more likely. The policy then reads both answers,
and their log-probs per token are compared (at temperature 1, including the end of the turn). Log-probs are per token,
so that length alone decides nothing. The policy compares them, not a reward model, because the reward model changes
with every round.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from accelerate.utils import gather_object

from app.artifacts import ArtifactStore, read_content
from app.domain.cases import CHECKS, Case, case_of, passes
from app.domain.suites import by_slice
from app.errors import InvalidInput
from app.rows import PromptRow, SuiteAnswer, lines_of
from app.specs import SuiteRef
from trainer.batching.chat import ChatEncoder, TokenSequence
from trainer.batching.data import describe_left_out
from trainer.evaluation.figures import response_logps
from trainer.processes import accelerator
from trainer.sampling.generation import Tick
from trainer.sampling.responses import Sampler, prompt_room

GREEDY = 1e-4  # temperature: tokens that are a thousandth of a nat less likely than the best one are not drawn

OnSuite = Callable[[int, Sequence[SuiteAnswer]], None]
"""Called with a suite version's id and both policies' answers to its cases."""


class Taken(NamedTuple):
    """A policy's result on one case: its answer, or the margin between the good and the bad answer."""

    passed: bool
    text: str = ""
    finished: bool = True
    margin: float | None = None


class Suites:
    """The cases of all suites of a spec; one policy after the other answers them.

    Raises:
        NotFound: a suite's file is gone.
        InvalidInput: a suite's file has changed and cannot be read.
    """

    def __init__(self, refs: Sequence[SuiteRef], store: ArtifactStore) -> None:
        self.refs = refs
        self.cases = [_read(store, ref) for ref in refs]
        self._all = [case for cases in self.cases for case in cases]

    def __len__(self) -> int:
        """Number of cases in all suites."""
        return len(self._all)

    def cut(self, encoder: ChatEncoder, max_new_tokens: int) -> tuple[str, ...]:
        """Return a sentence about the cases whose prompt is too long and has to be cut.

        Raises:
            InvalidInput: the chat template rejects a conversation.
        """
        room = prompt_room(encoder, max_new_tokens)
        cut = [number for number, case in enumerate(self._all, 1) if encoder.prompt_within(case.messages, room)[1]]
        return describe_left_out({encoder.cut: cut} if cut else {}, "cases of suites")

    def taken_by(
        self,
        model: Any,
        encoder: ChatEncoder,
        max_new_tokens: int,
        batch_size: int,
        on_done: Callable[[int], None],
        tick: Tick,
    ) -> tuple[list[Taken], int]:
        """Return a policy's results on all cases, in order, and the number of sampled tokens.

        Every process does its share of the cases; all processes get all results.

        Args:
            on_done: called with the number of cases that were completed since the last call.
        """
        dealer = accelerator()
        mine = range(len(self._all))[dealer.process_index :: dealer.num_processes]
        asked = [i for i in mine if CHECKS[self._all[i].check].answers]
        found: dict[int, Taken] = {}
        tokens = 0
        sampler = Sampler(model, encoder, max_new_tokens, GREEDY, 0, "suites", tick) if asked else None
        rows = [(PromptRow(id=i, messages=self._all[i].messages), (0,)) for i in asked]
        for batch in sampler.respond(rows, batch_size) if sampler else ():
            for response in batch:
                tokens += len(response.sample.tokens)
                passed = passes(self._all[response.row.id], response.text)
                found[response.row.id] = Taken(passed, response.text, response.sample.finished)
            on_done(len(batch))
            tick()
        found |= self._preferred([i for i in mine if i not in found], model, encoder, tick)
        on_done(len(mine) - len(asked))
        shares = gather_object([(found, tokens)])
        everyones = {i: taken for share, _ in shares for i, taken in share.items()}
        return [everyones[i] for i in range(len(self._all))], sum(said for _, said in shares)

    def _preferred(self, places: Sequence[int], model: Any, encoder: ChatEncoder, tick: Tick) -> dict[int, Taken]:
        """Return the results on cases that compare a good and a bad answer."""
        sequences: list[TokenSequence] = []
        fitted: list[int] = []
        for i in places:
            both = [encoder.completion(self._all[i].given[name]) for name in ("good", "bad")]
            if fit := encoder.fit(self._all[i].messages, both):
                sequences += fit.sequences
                fitted.append(i)
        logps = response_logps(model, sequences, 1.0, encoder.tokenizer.pad_token_id, tick) if sequences else []
        means = [float(each.double().mean()) for each in logps]
        margins = dict(
            zip(fitted, (good - bad for good, bad in zip(means[::2], means[1::2], strict=True)), strict=True)
        )
        # A case that does not fit the model's maximum length counts as failed for both policies.
        return {i: Taken(margins.get(i, 0.0) > 0, margin=margins.get(i)) for i in places}

    def compare(self, new: Sequence[Taken], before: Sequence[Taken], on_suite: OnSuite) -> list[dict[str, Any]]:
        """Call `on_suite` with all answers; return counts by version and slice, as `store_results` expects them."""
        results, start = [], 0
        for ref, cases in zip(self.refs, self.cases, strict=True):
            pairs = [(new[start + i], before[start + i]) for i in range(len(cases))]
            start += len(cases)
            on_suite(ref.version, [_answer(case, *pair) for case, pair in zip(cases, pairs, strict=True)])
            scores = by_slice(
                [case.slice for case in cases], [mine.passed for mine, _ in pairs], [its.passed for _, its in pairs]
            )
            results.append(
                {"version": ref.version, "slices": {name: score._asdict() for name, score in scores.items()}}
            )
        return results


def _answer(case: Case, new: Taken, before: Taken) -> SuiteAnswer:
    return SuiteAnswer(
        id=case.id,
        slice=case.slice,
        passed=new.passed,
        passed_before=before.passed,
        answer=new.text,
        answer_before=before.text,
        finished=new.finished,
        finished_before=before.finished,
        margin=new.margin,
        margin_before=before.margin,
    )


def _read(store: ArtifactStore, ref: SuiteRef) -> list[Case]:
    lines = lines_of(read_content(store.resolve(ref.location)).decode())
    try:
        return [case_of(json.loads(line), number) for number, line in enumerate(lines, 1)]
    except ValueError as error:
        raise InvalidInput(f"The suite {ref.location} cannot be read: {error}.", "Add the suite again.") from error


def to_lines(answers: Sequence[SuiteAnswer], *, alone: bool = False) -> str:
    """alone: without the fields of the policy before."""
    left_out = {name for name in SuiteAnswer.model_fields if alone and name.endswith("_before")}
    return "".join(answer.model_dump_json(exclude=left_out) + "\n" for answer in answers)
