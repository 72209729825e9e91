"""The client that simulates labelers on both sides, and its reading of Prefloop's pages."""

import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import Engine, text

from app.settings import Settings
from benchmarks import data
from benchmarks.peer import ours, statements
from benchmarks.peer.__main__ import COLUMNS, row
from benchmarks.peer.client import Played, Refused, percentile, play, shared_out, turn
from benchmarks.peer.desk import OurLabeler
from benchmarks.peer.label_studio import TheirLabeler
from benchmarks.peer.processes import processor_seconds, run
from benchmarks.peer.sides import Plan, Side

PASSWORD = "a long password"


class Scripted:
    """A labeler that follows a script: a card's id, None for an empty desk, or an error on answering."""

    def __init__(self, *script: Any) -> None:
        self.http = httpx.Client()
        self.script = list(script)
        self.asked = True

    def next_card(self) -> Any:
        return self.script.pop(0) if self.script else None

    def answer(self, card: Any) -> str:
        if isinstance(card, Exception):
            raise card
        return f"answer to {card}"


def test_a_turn_notes_answers_empty_desks_and_errors() -> None:
    played = Played(begin=0)
    labeler = Scripted("a", None, Refused("no"), httpx.ReadTimeout("slow"), "b")
    assert [turn(labeler, played) for _ in range(5)] == [True, False, False, False, True]
    assert played.acknowledged == ["answer to a", "answer to b"]
    assert (len(played.card), len(played.answer), played.dry) == (2, 2, 1)
    assert played.errors == Counter({"Refused: no": 1, "ReadTimeout: slow": 1})


def test_outside_the_window_answers_are_kept_but_not_timed() -> None:
    played = Played()
    assert turn(Scripted("a"), played)
    assert (played.acknowledged, played.card, played.answer) == (["answer to a"], [], [])


def test_a_fault_of_the_client_ends_the_run() -> None:
    with pytest.raises(ZeroDivisionError):
        play([Scripted(ZeroDivisionError())], Played(), seconds=0.1, warmup=0, service_seconds=lambda: 0)


def test_a_window_measures_time_and_processor_time() -> None:
    played, used = Played(), iter([5.0, 7.0, 20.0, 21.0])
    for _ in range(2):
        play([Scripted()], played, seconds=0.05, warmup=0, service_seconds=lambda: next(used))
    assert played.service_seconds == (7 - 5) + (21 - 20)
    assert played.seconds >= 2 * 0.05
    assert played.begin == math.inf  # none is open


def test_percentiles_are_nearest_ranks() -> None:
    values = [float(n) for n in range(20, 0, -1)]
    assert (percentile(values, 50), percentile(values, 95), percentile(values, 96)) == (10, 19, 20)
    assert percentile([7], 95) == 7
    assert math.isnan(percentile([], 50))


def test_labelers_are_shared_out_in_turn() -> None:
    assert shared_out(5, ["a", "b"]) == ["a", "b", "a", "b", "a"]


def test_a_row_of_the_table() -> None:
    played = Played(seconds=4, card=[100, 300], answer=[200, 400], errors=Counter(x=2))
    played.client_seconds, played.service_seconds = 1, 0.6
    cells = row("Prefloop", played, over=1, lost=3).split()
    assert cells == ["Prefloop", "0.5", "100", "300", "200", "400", "2", "1", "3", "300", "25%"]
    assert len(cells) == 1 + len(COLUMNS)


def test_our_labelers_judge_what_was_imported(
    app: FastAPI, engine: Engine, settings: Settings, database_url: str, tmp_path: Path
) -> None:
    plan = Plan(data.made(6), labelers=1, overlap=1, processes=1, url=database_url, folder=tmp_path)
    email, other = ours.fill(database_url, plan, PASSWORD)
    labeler = OurLabeler(TestClient(app), email, PASSWORD)
    played = Played()
    assert turn(labeler, played)
    assert turn(labeler, played)

    side = Side("Prefloop", [labeler], engine, ours.OVER, ours.STORED)
    assert side.lost([*played.acknowledged, str(uuid4())]) == 1
    assert side.over_assigned(1) == 0
    assert side.over_assigned(0) == 2  # both would be too many

    counts = statements.measure(settings, database_url, other, PASSWORD, turns=1)
    assert list(counts) == ["card", "answer", "ahead"]
    assert all(counts.values())


def test_statements_are_counted(engine: Engine) -> None:
    with statements.counted(engine) as count, engine.connect() as connection:
        assert count(lambda: [connection.execute(text("SELECT 1")) for _ in range(3)]) == 3


def test_their_labeler_takes_404_for_an_empty_desk() -> None:
    asked: list[tuple[str, str]] = []
    tasks = [httpx.Response(404), httpx.Response(200, json={"id": 7})]

    def serve(request: httpx.Request) -> httpx.Response:
        asked.append((request.method, request.url.path))
        if request.url.path == "/api/dm/actions/":
            return tasks.pop()
        return httpx.Response(201, json={"id": 11}, headers={"set-cookie": "csrftoken=t; Path=/"})

    http = httpx.Client(base_url="http://peer", transport=httpx.MockTransport(serve))
    labeler = TheirLabeler(http, "someone@example.org", PASSWORD)
    labeler.project = 5
    card = labeler.next_card()
    assert labeler.answer(card) == "11"
    assert labeler.next_card() is None
    assert asked[-2] == ("POST", "/api/tasks/7/annotations/")


def test_processor_time_includes_what_was_started() -> None:
    work = "sum(range(3_000_000))"  # some hundredths of a second at least
    before = processor_seconds([os.getpid()])
    subprocess.run([sys.executable, "-c", work], check=True)
    assert processor_seconds([os.getpid()]) - before >= 0.02


def test_a_command_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="out of order"):
        run(["sh", "-c", "echo out of order; exit 3"], {"PATH": "/usr/bin:/bin"}, tmp_path, tmp_path / "log")
