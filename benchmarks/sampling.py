"""Compare our sampling speed with `model.generate` of transformers: same model, prompts, temperature and lengths.

`python -m benchmarks.sampling MODEL` alternates between both in one process and prints the median ratio of samples per
second. First it checks that both sample from the same distribution: the log-probs of our samples must equal those of a
plain forward pass, and the shares of finished samples may differ only by chance. `generate` is used as well as it can
be: batches of prompts of similar length, k return sequences, one padded batch after the other.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

from app.rows import PromptRow
from app.specs import ModelRef
from trainer.batching.chat import ChatEncoder
from trainer.batching.data import by_length, chunks, left_padded
from trainer.models.loading import load_causal_lm, load_tokenizer
from trainer.sampling.generation import plain_logps
from trainer.sampling.responses import Response, Sampler

STARTER_PROMPTS = Path(__file__).parent.parent / "app" / "projects" / "starter_content" / "prompts.jsonl"
LOGPS_TOLERANCE = 1e-4  # nats per token


class Figures(NamedTuple):
    """Figures of one run of one side. Tokens count the samples up to and including the stop token."""

    samples: int
    finished: int
    tokens: int
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.samples / self.seconds:7.3f} samples/s {self.tokens / self.seconds:8.1f} tokens/s "
            f"({self.samples} samples, {self.finished / self.samples:.0%} finished, "
            f"{self.tokens / self.samples:.1f} tokens each)"
        )


class Sides:
    """Both ways of sampling k responses per prompt, with `batch_size` sequences at once."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, ref = args, ModelRef(base=args.model)
        self.clock = time.process_time if args.cpu_time else time.perf_counter
        self.model = load_causal_lm(ref, dtype=getattr(torch, args.precision))
        self.encoder = ChatEncoder(load_tokenizer(ref), args.max_length)
        with args.prompts.open(encoding="utf-8") as lines:
            messages = [json.loads(line)["messages"] for line in lines if line.strip()][: args.count]
        self.rows = [PromptRow(id=i, messages=tuple(conversation)) for i, conversation in enumerate(messages)]
        self.stops = sorted({self.encoder.end_id, self.encoder.tokenizer.eos_token_id})

    def ours(self, seed: int) -> tuple[Figures, list[Response]]:
        args = self.args
        sampler = Sampler(self.model, self.encoder, args.max_new_tokens, args.temperature, seed, "benchmark")
        wanted = [(row, range(args.k)) for row in self.rows]
        started = self.clock()
        responses = [response for batch in sampler.respond(wanted, args.batch_size) for response in batch]
        seconds = self.clock() - started
        finished = sum(response.sample.finished for response in responses)
        return Figures(len(responses), finished, sum(len(r.sample.tokens) for r in responses), seconds), responses

    @torch.no_grad()
    def generate(self, seed: int) -> Figures:
        args, pad_id = self.args, self.encoder.tokenizer.pad_token_id
        torch.manual_seed(seed)
        samples = finished = tokens = 0
        started = self.clock()
        room = args.max_length - args.max_new_tokens
        prompts = [self.encoder.prompt_within(row.messages, room)[0] for row in self.rows]
        order = by_length([len(prompt) for prompt in prompts])
        for part in chunks(order, max(1, args.batch_size // args.k)):
            batch = left_padded([prompts[i] for i in part], pad_id)
            out = self.model.generate(
                input_ids=batch.input_ids,
                attention_mask=batch.valid_mask.long(),
                do_sample=True,
                temperature=args.temperature,
                top_k=0,
                top_p=1.0,
                max_new_tokens=args.max_new_tokens,
                num_return_sequences=args.k,
                eos_token_id=self.stops,
                pad_token_id=pad_id,
            )
            for row in out[:, batch.input_ids.shape[1] :].tolist():
                end = next((i for i, token in enumerate(row) if token in self.stops), None)
                self.encoder.tokenizer.decode(row[:end])
                samples, finished = samples + 1, finished + (end is not None)
                tokens += len(row) if end is None else end + 1
        return Figures(samples, finished, tokens, self.clock() - started)

    def largest_error(self, responses: list[Response]) -> float:
        """Return the largest difference between our log-probs and those of a plain forward pass, for eight samples."""
        errors: list[Any] = []
        for response in responses[:: max(1, len(responses) // 8)]:
            expected = plain_logps(self.model, response.prompt, response.sample.tokens, self.args.temperature)
            errors.append((torch.tensor(response.sample.logps) - expected).abs().max())
        return float(max(errors))


def check(sides: Sides, ours: list[Response], figures: tuple[Figures, Figures]) -> None:
    """Stop if the two do not sample from the same distribution."""
    error = sides.largest_error(ours)
    print(f"log-probs of our samples differ from a plain forward pass by at most {error:.1e} nats per token")
    if sides.args.precision == "float32" and error > LOGPS_TOLERANCE:
        raise SystemExit(f"The log-probs disagree: {error:.2e} > {LOGPS_TOLERANCE}. No ratio.")
    mine, theirs = figures
    share = (mine.finished + theirs.finished) / (mine.samples + theirs.samples)
    # Samples of a prompt are correlated: their shares vary up to sqrt(k) times as much as those of independent samples.
    spread = (sides.args.k * share * (1 - share) * (1 / mine.samples + 1 / theirs.samples)) ** 0.5
    difference = abs(mine.finished / mine.samples - theirs.finished / theirs.samples)
    print(f"shares of finished samples differ by {difference:.3f} (one standard error: {spread:.3f})")
    if difference > 4 * max(spread, 1 / mine.samples):
        raise SystemExit("The two ways do not finish equally often. No ratio.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder or hub name")
    parser.add_argument("--prompts", type=Path, default=STARTER_PROMPTS, help="JSONL with messages")
    parser.add_argument("--count", type=int, default=72, help="number of prompts, from the start of the file")
    parser.add_argument("--k", type=int, default=4, help="samples per prompt")
    parser.add_argument("--batch-size", type=int, default=32, help="sequences generated together")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cpu-time", action="store_true", help="measure CPU time, for a busy machine (with 1 thread)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    sides = Sides(args)
    print(f"{len(sides.rows)} prompts, k = {args.k}, {args.batch_size} sequences at once, {args.precision}")
    ratios, error_checked = [], False
    for repeat in range(args.repeats):
        # The two sides take turns in going first, so that a machine that slows down favors neither.
        theirs = sides.generate(repeat) if repeat % 2 else None
        mine, responses = sides.ours(repeat)
        theirs = theirs or sides.generate(repeat)
        if not error_checked:
            check(sides, responses, (mine, theirs))
            error_checked = True
        ratios.append((mine.samples / mine.seconds) / (theirs.samples / theirs.seconds))
        print(f"ours      {mine}\ngenerate  {theirs}\nratio     {ratios[-1]:.2f}", flush=True)
    print(f"ratio sampling_k{args.k} {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
