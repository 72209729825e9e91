"""Simulated labelers: they join by invitation and label until nothing is left for them."""

import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from app.errors import Unavailable
from app.simulation.browser import Browser, Form, Page
from app.simulation.preference import Score, SimulatedLabeler

CARD = "form.answer"
PAUSE_SECONDS = 2.0
PATIENCE_SECONDS = 600.0  # maximum wait with an empty queue while more comparisons are expected


def question_and_responses(card: Page) -> tuple[str, list[str]]:
    """Return the user's last message on a card, and the responses in the order shown."""
    turns = card.soup.select(".turn-user .prose")
    question = turns[-1].get_text(" ", strip=True) if turns else ""
    texts = [response.select_one(".prose") for response in card.soup.select("[data-response]")]
    return question, [text.get_text(" ", strip=True) if text else "" for text in texts]


def answered(card: Page, form: Form, labeler: SimulatedLabeler) -> dict[str, Any]:
    """Return the form fields of the labeler's answer: a step of the scale, or a rank for each response."""
    question, responses = question_and_responses(card)
    if "ranks" in form.values:
        return {"ranks": [str(rank) for rank in labeler.rank(question, responses)]}
    steps = sorted(int(value) for value in form.choices["preference"] if value.lstrip("-").isdigit())
    first, second = responses
    judged = labeler.judge(question, first, second, strengths=max(steps))
    if judged not in steps:  # a rubric without ties
        judged = labeler.rng.choice((-1, 1))
    return {"preference": str(judged)}


def work(browser: Browser, labeler: SimulatedLabeler, desk: str, limit: int) -> int:
    """Judge until the queue is empty or `limit` is reached; return the number of judgments."""
    done = 0
    page = browser.open(desk)
    while done < limit and page.soup.select_one(CARD):
        form = page.form(CARD)
        page = browser.send(form, **answered(page, form, labeler))
        done += 1
    return done


class Crew:
    """N labelers with the same hidden preference. Each makes their own errors, which depend only on the seed."""

    def __init__(self, browsers: list[Browser], score: Score, noise: float, position_bias: float, seed: int) -> None:
        self.pairs = [
            (browser, SimulatedLabeler(score, noise, position_bias, random.Random(f"{seed}-{number}")))
            for number, browser in enumerate(browsers)
        ]

    def label_all(self, desk: str, limit: int, more_to_come: Callable[[], bool], say: Callable[[str], None]) -> int:
        """Let all labelers work until the queue is empty and no more is expected, or until `limit` judgments.

        Raises:
            Unavailable: more comparisons were expected, but did not come.
        """
        total, worked = 0, time.monotonic()
        share, over = divmod(limit, len(self.pairs))
        left = [share + (number < over) for number in range(len(self.pairs))]
        with ThreadPoolExecutor(len(self.pairs)) as pool:
            while True:
                # Ask before the work, so that comparisons that arrive meanwhile are found in the next turn.
                more = more_to_come()
                jobs = [
                    pool.submit(work, browser, labeler, desk, left[number])
                    for number, (browser, labeler) in enumerate(self.pairs)
                ]
                done = [job.result() for job in jobs]
                for number, judged in enumerate(done):
                    left[number] -= judged
                total += sum(done)
                if sum(done):
                    say(f"{total} judgments")
                    worked = time.monotonic()
                if not any(left) or (not more and not sum(done)):
                    return total
                if time.monotonic() - worked > PATIENCE_SECONDS:
                    raise Unavailable(
                        "Responses are being sampled, but none came to compare in ten minutes.",
                        "Is a worker running? Look at the Rounds page.",
                    )
                if not sum(done):
                    time.sleep(PAUSE_SECONDS)
