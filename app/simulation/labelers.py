"""Simulated people at work: they join by invitation and label until nothing is left for them."""

import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from app.simulation.browser import Browser, Page
from app.simulation.preference import Score, SimulatedLabeler

CARD = "form.answer"


def question_and_responses(card: Page) -> tuple[str, str, str]:
    """What a card shows: the last thing the user said, and the two responses in the order shown."""
    turns = card.soup.select(".turn-user .prose")
    question = turns[-1].get_text(" ", strip=True) if turns else ""
    first, second = (card.text(f'[data-response="{name}"] .prose') or "" for name in ("first", "second"))
    return question, first, second


def work(browser: Browser, labeler: SimulatedLabeler, desk: str, limit: int) -> int:
    """Judges until the desk is empty, `limit` is reached; returns how many."""
    done = 0
    page = browser.open(desk)
    while done < limit and page.soup.select_one(CARD):
        form = page.form(CARD)
        values = sorted(int(value) for value in form.choices["preference"])
        judged = labeler.judge(*question_and_responses(page), strengths=max(values))
        if judged not in values:  # a rubric without ties
            judged = labeler.rng.choice((-1, 1))
        page = browser.send(form, preference=str(judged))
        done += 1
    return done


class Crew:
    """N labelers with one hidden preference; each errs in their own way, but always the same for the same seed."""

    def __init__(self, browsers: list[Browser], score: Score, noise: float, position_bias: float, seed: int) -> None:
        self.pairs = [
            (browser, SimulatedLabeler(score, noise, position_bias, random.Random(f"{seed}-{number}")))
            for number, browser in enumerate(browsers)
        ]

    def label_all(self, desk: str, limit: int, more_to_come: Callable[[], bool], say: Callable[[str], None]) -> int:
        """Everyone works at once until the queue is empty and no more is to come, or `limit` judgments are made."""
        total = 0
        share = -(-limit // len(self.pairs))
        left = dict.fromkeys(range(len(self.pairs)), share)
        with ThreadPoolExecutor(len(self.pairs)) as pool:
            while True:
                # Asked before the work: what arrives during it is seen by the next look.
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
                if not any(left.values()) or (not more and not sum(done)):
                    return total
                if not sum(done):
                    time.sleep(2)
