"""A policy takes suites by itself, outside any round: see `trainer.evaluation.suites`."""

import time
from typing import Any, NamedTuple

from app.artifacts import ArtifactStore
from app.specs import SuitesSpec
from trainer.batching.chat import ChatEncoder
from trainer.evaluation.suites import OnSuite, Suites
from trainer.models.loading import load_causal_lm, load_tokenizer, notes_on, read_by_all, resolve, sampling_dtype
from trainer.models.sizes import sizes_for
from trainer.processes import accelerator
from trainer.reporting import Reporter
from trainer.speed.memory import PeakMemory
from trainer.speed.precision import name_of


class SuitesResult(NamedTuple):
    """Attributes as of `EvaluateResult`. In the counts, the policy stands on both sides: nothing is gained or lost."""

    suites: tuple[dict[str, Any], ...]
    tokens: int
    seconds: float
    precision: str
    peak_memory: int
    notes: tuple[str, ...] = ()


def take(spec: SuitesSpec, store: ArtifactStore, reporter: Reporter, on_suite: OnSuite) -> SuitesResult:
    """Take the spec's suites; `on_suite` gets what the policy made of each.

    Raises:
        NotFound, InvalidInput: a suite's file is gone or is not what was written, or the chat template takes no such
            conversation.
        ModelUnavailable: the model does not load.
    """
    started, memory = time.monotonic(), PeakMemory()
    suites, ref = Suites(spec.suites, store), resolve(store, spec.policy)
    tokenizer = load_tokenizer(ref)
    encoder = ChatEncoder(tokenizer, read_by_all(spec.max_length, ref.base))
    notes = (*notes_on(tokenizer), *suites.cut(encoder, spec.generation.max_new_tokens))
    dtype = sampling_dtype(spec.generation.precision, ref)
    batch_size = spec.generation.batch_size or sizes_for(ref, dtype).batch_size
    done = 0

    def tick() -> None:
        reporter.progress(done, len(suites), "answering suites")

    def count(cases: int) -> None:
        nonlocal done
        done += cases

    tick()
    model = load_causal_lm(ref, dtype=dtype)
    taken, tokens = suites.taken_by(model, encoder, spec.generation.max_new_tokens, batch_size, count, tick)
    reporter.worked(tokens)
    tick()
    main = accelerator().is_main_process
    results = suites.compare(taken, taken, on_suite if main else lambda version, answers: None)
    seconds = time.monotonic() - started
    return SuitesResult(
        tuple(results), tokens, seconds, name_of(dtype), peak_memory=memory.peak(), notes=(*notes, *memory.notes)
    )
