"""Count the SQL statements of labeling, by running the app in this process and listening to its engine."""

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
    """Return the median numbers of statements over the turns of one labeler, by step.

    The steps are `card` (a request for the desk), `ahead` (a request for the card after it) and `answer`. BEGIN, COMMIT
    and the connection pool's checks are not counted.
    """
    app = create_app(settings, url)
    engine = app.state.session_factory.kw["bind"]
    seen: dict[str, list[int]] = {"card": [], "answer": [], "ahead": []}
    # Do not use the client as a context manager: that would start the app's background tasks.
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
    """Yield a function that calls another function and returns how many statements it sent."""
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
