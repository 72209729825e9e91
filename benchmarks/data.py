"""Training pairs: from files in any import format, or generated with given lengths."""

import gzip
import json
import random
from collections.abc import Sequence
from pathlib import Path

from app.datasets.formats import detect, parser
from app.datasets.records import PairRecord
from app.rows import PairRow

WORDS = "time year people way day man thing woman life child world school state family student group country".split()
PROMPT_WORDS, RESPONSE_WORDS = (40, 200), (20, 120)  # of generated pairs: uniform in this range, one token per word


def row(
    number: int, messages: Sequence[dict[str, str]], chosen: str, rejected: str, ranking: int | None = None
) -> PairRow:
    """Return a training pair with a certain winner, always response A."""
    return PairRow(
        comparison_id=number,
        prompt_id=number if ranking is None else ranking,
        messages=tuple(messages),
        response_a=chosen,
        response_b=rejected,
        preference=-3,
        p_b=0,
        split="train",
        ranking=ranking,
    )


def read(path: Path) -> list[PairRow]:
    """Read the pairs of a file that have a winner (by the first judgment if several people judged)."""
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as handle:
        lines = [json.loads(line) for line in handle]
    format_ = detect(lines[0])
    if format_ is None:
        raise SystemExit(f"{path}: not a format that can be imported (see docs/import.md).")
    parse = parser(format_, path.stem, guessed=True)
    rows: list[PairRow] = []
    for line in lines:
        try:
            records, _ = parse(line)
        except ValueError:  # an import would refuse this line too
            continue
        for record in records:
            if not isinstance(record, PairRecord) or not record.judgments or record.judgments[0].side == 0:
                continue
            chosen, rejected = record.response_a, record.response_b
            if record.judgments[0].side > 0:
                chosen, rejected = rejected, chosen
            if chosen and rejected and chosen != rejected:
                rows.append(row(len(rows), record.prompt.messages, chosen, rejected))
    return rows


def made(count: int, responses: int = 2, seed: int = 0) -> list[PairRow]:
    """Generate `count` prompts with all pairs of their `responses`; more than two responses form one ranking."""
    draw = random.Random(seed)

    def words(bounds: tuple[int, int]) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(*bounds)))

    rows: list[PairRow] = []
    for ranking in range(count):
        messages = [{"role": "user", "content": words(PROMPT_WORDS)}]
        texts = [words(RESPONSE_WORDS) for _ in range(responses)]
        for i, chosen in enumerate(texts):
            for rejected in texts[i + 1 :]:
                rows.append(row(len(rows), messages, chosen, rejected, ranking if responses > 2 else None))
    return rows
