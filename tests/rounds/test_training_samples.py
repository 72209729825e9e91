"""A policy's samples during training, side by side over the steps."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bs4 import BeautifulSoup
from fastapi import FastAPI
from sqlalchemy.orm import Session

from app.models import Project, Run
from app.rounds.service import samples_of
from app.rounds.training_samples import PROMPTS_PER_PAGE, STEPS_PER_PAGE, read_training_samples, side_by_side
from tests import factories
from tests.conftest import SignedIn


def line(step: int, prompt: int, response: str = "", **values: Any) -> dict[str, Any]:
    return {
        "step": step,
        "prompt_id": prompt,
        "messages": [{"role": "user", "content": f"Question {prompt}?"}],
        "slices": {"domain": "safety" if prompt % 2 else "factual"},
        "response": response or f"answer {prompt} at {step}",
        "score": step / 10,
        "kl": 1.5,
        "finished": True,
    } | values


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write_(*lines: Any) -> Path:
        path = tmp_path / "samples.jsonl"
        path.write_text("".join((each if isinstance(each, str) else json.dumps(each)) + "\n" for each in lines))
        return path

    return write_


def test_a_prompts_answers_stand_beside_each_other_newest_first(write: Callable[..., Path]) -> None:
    path = write(line(2, 1), line(2, 2), line(4, 1), line(6, 1))
    view = side_by_side(read_training_samples(path))
    assert (view.steps, view.n_prompts, view.slices) == ([6, 4, 2], 2, ["domain=factual", "domain=safety"])
    answers = [[answer.response if answer else None for answer in prompt.answers] for prompt in view.prompts]
    assert answers == [["answer 1 at 6", "answer 1 at 4", "answer 1 at 2"], [None, None, "answer 2 at 2"]]
    assert [
        prompt.messages[0]["content"] for prompt in side_by_side(read_training_samples(path), "domain=safety").prompts
    ] == ["Question 1?"]


def test_a_resumed_run_replaces_and_a_broken_line_is_left_out(write: Callable[..., Path]) -> None:
    path = write(line(2, 1, "first"), line(2, 1, "second"), '{"step": 4, "prompt_id": 1, "mess', "[]", "")
    assert [sample.response for sample in read_training_samples(path)] == ["second"]


def test_many_rows_are_paged(write: Callable[..., Path]) -> None:
    samples = read_training_samples(write(*(line(step, prompt) for step in range(20) for prompt in range(35))))
    last = side_by_side(samples, first_prompt=30, first_step=18)
    assert (len(last.prompts), last.steps, last.n_prompts, last.n_steps) == (5, [1, 0], 35, 20)
    first = side_by_side(samples)
    assert (len(first.prompts), len(first.steps)) == (PROMPTS_PER_PAGE, STEPS_PER_PAGE)


@pytest.fixture
def project(session: Session) -> Project:
    project = factories.project(session)
    round_ = factories.round_(session, project, number=1, algorithm="ppo", state="policy", config={})
    factories.run(session, project, "ppo", round_id=round_.id)
    session.commit()
    return project


def put(app: FastAPI, session: Session, *lines: Any) -> None:
    run = session.query(Run).one()
    path = app.state.store.root / samples_of(run.id)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(each) + "\n" for each in lines))


def test_the_page_shows_them_and_pages(
    app: FastAPI, session: Session, project: Project, sign_in: Callable[..., SignedIn]
) -> None:
    client, here = sign_in("admin"), f"/projects/{project.slug}/rounds/1"
    empty = client.get(f"{here}/samples?shown=training")
    assert (empty.status_code, "No samples while training" in empty.text) == (200, True)
    assert "shown=training" not in client.get(here).text
    put(app, session, *(line(step, prompt, finished=step > 0) for step in range(8) for prompt in range(12)))
    assert f"{here}/samples?shown=training" in client.get(here).text
    page = BeautifulSoup(client.get(f"{here}/samples").text, "html.parser")
    assert [h.text for h in page.select("article")[0].select("h3")] == [f"Step {step}" for step in range(7, 1, -1)]
    links = {a.text: a["href"] for a in page.select(".pager a")}
    assert set(links) == {"More prompts", "Older steps"}
    older = client.get(str(links["Older steps"])).text
    assert "answer 0 at 1" in older
    assert "cut by length" in older
    assert "answer 0 at 2" not in older
    assert "answer 11 at 7" in client.get(str(links["More prompts"])).text
    sliced = client.get(f"{here}/samples?shown=training&slice=domain%3Dsafety").text
    assert "answer 1 at 7" in sliced
    assert "answer 2 at 7" not in sliced
    assert client.get(f"{here}/samples?shown=queue").status_code == 200
    assert sign_in("labeler").get(f"{here}/samples").status_code == 403


def test_hostile_answers_are_text(
    app: FastAPI, session: Session, project: Project, sign_in: Callable[..., SignedIn]
) -> None:
    put(app, session, line(1, 1, "<script>alert(1)</script>", score=None, slices={"domain": "<b>x</b>"}))
    page = sign_in("operator").get(f"/projects/{project.slug}/rounds/1/samples").text
    assert "<script>alert" not in page
    assert "<b>x</b>" not in page
