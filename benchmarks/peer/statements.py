"""How many SQL statements the label path costs: the app in this process, its engine listened to."""

import contextlib
import statistics
from collections.abc import Callable, Iterator
from typing import Any

from fastapi.testclient import TestClient
from sqlalchemy import Engine, event

from app.main import create_app
from app.settings import Settings
from benchmarks.peer.desk import OurLabeler

TURNS = 20


def measure(settings: Settings, url: str, email: str, password: str, turns: int = TURNS) -> dict[str, int]:
    """Medians over turns of one labeler: `card` (the desk is asked for), `ahead` (the card after it) and `answer`.

    BEGIN, COMMIT and the pool's look at the connection are not counted.
    """
    app = create_app(settings, url)
    engine = app.state.session_factory.kw["bind"]
    seen: dict[str, list[int]] = {"card": [], "answer": [], "ahead": []}
    # Not as a context: the app's other processes are not started.
    with contextlib.closing(TestClient(app)) as http, counted(engine) as count:
        labeler = OurLabeler(http, email, password)
        for _ in range(turns):
            seen["card"].append(count(labeler.open_desk))
            seen["ahead"].append(count(labeler.next_card))
            card = labeler.desk
            assert card, "the queue ran dry"
            seen["answer"].append(count(lambda card=card: labeler.answer(card)))
    engine.dispose()
    return {name: round(statistics.median(counts)) for name, counts in seen.items()}


@contextlib.contextmanager
def counted(engine: Engine) -> Iterator[Callable[[Callable[[], Any]], int]]:
    """Yields a function that calls another one and returns how many statements that sent."""
    total = 0

    def note(*_: Any) -> None:
        nonlocal total
        total += 1

    def count(work: Callable[[], Any]) -> int:
        before = total
        work()
        return total - before

    event.listen(engine, "before_cursor_execute", note)
    try:
        yield count
    finally:
        event.remove(engine, "before_cursor_execute", note)
