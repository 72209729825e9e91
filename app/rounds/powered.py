"""People's win rate and AI judges' together, on a round's page beside people's own."""

from typing import NamedTuple

from sqlalchemy.orm import Session

from app.domain.prediction_powered import FEWEST, Powered, powered
from app.judges import queries as judge_queries
from app.models import Round
from app.rounds import result_queries


class Together(NamedTuple):
    """People's win rate and AI judges' together. both: none while people judged too few prompts; judges never stand
    alone. judged: prompts that all judges named judged."""

    both: Powered | None
    judged: int
    names: str
    fewest: int = FEWEST


def powered_on(session: Session, round_: Round) -> Together | None:
    """What judges add to people's word on the round's policy beside the one before; none if no judge was asked.

    A prompt counts for judges if every judge who was asked about this round judged all its comparisons.
    """
    by_prompt, names = judge_queries.on_evaluation(session, round_)
    if not by_prompt:
        return None
    everybody = {judge for comparisons in by_prompt.values() for each in comparisons for judge in each}
    judged = {
        prompt: sum(sum(each.values()) / len(each) for each in comparisons) / len(comparisons)
        for prompt, comparisons in by_prompt.items()
        if all(each.keys() == everybody for each in comparisons)
    }
    people = {
        row.prompt_id: row.value
        for row in result_queries.evaluated(session, [round_.id])
        if row.rival_id == round_.policy_before_id and row.is_whole and row.judgments
    }
    shared = [prompt for prompt in people if prompt in judged]
    rest = [value for prompt, value in judged.items() if prompt not in people]
    found = powered([people[prompt] for prompt in shared], [judged[prompt] for prompt in shared], rest)
    return Together(found, len(judged), ", ".join(names))
