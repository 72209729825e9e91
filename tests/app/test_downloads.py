"""Downloads are streamed from the database into a file: none is in memory as a whole, and failed ones are errors."""

import json
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from app import scratch
from app.models import Completion, Project
from app.rounds import views
from tests import factories
from tests.rounds.loop import decided, make_project

ROWS, BYTES = 200, 51_200  # number of responses, and bytes of each
PATHS = ("samples.jsonl", *(f"data/export?kind={kind}" for kind in ("preferences", "demonstrations", "thumbs", "full")))


@pytest.fixture
def project(session: Session) -> Project:
    """A project whose downloads all have more than 10 MB."""
    project = make_project(session, train=1, heldout=0)
    run, labeler = factories.run(session, project, "sample"), factories.user(session)
    for n in range(ROWS):
        prompt = factories.prompt(session, project)
        decided(session, project, prompt, [labeler.id], preferences=(1,), texts=(f"{n} a", f"{n} b"))
        sample = Completion(
            prompt_id=prompt.id, text="s", model_version_id=project.policy_id, run_id=run.id, sample_index=0
        )
        session.add(sample)
        session.flush()
        factories.thumb(session, sample, liked=True, labeler_id=labeler.id)
        factories.demonstration(session, prompt)
    long = f"repeat(md5(id::text), {BYTES // 32})"
    session.execute(text(f"UPDATE completion SET text = {long}"))
    session.execute(text(f"UPDATE demonstration SET text = {long}"))
    session.commit()
    return project


def test_a_download_is_never_held_whole(
    project: Project, sign_in: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client reads 64 kB at a time and keeps nothing. Rows must come a few at a time: a thousand would be 50 MB."""
    monkeypatch.setattr("app.datasets.queries.AT_ONCE", 10)
    monkeypatch.setattr("app.datasets.full_queries.AT_ONCE", 10)
    monkeypatch.setattr("app.rounds.views.AT_ONCE", 10)
    written, sizes = [], []
    original = scratch.download

    def measure(name: str, media_type: str, write: Callable[..., object]) -> Any:
        def measured(file: Any) -> None:
            tracemalloc.start()
            write(file)
            sizes.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
            written.append(file.stat().st_size)

        return original(name, media_type, measured)

    monkeypatch.setattr(scratch, "download", measure)
    client = sign_in("admin", "operator")
    for path in PATHS:
        answer = client.get(f"/projects/{project.slug}/{path}")
        assert (answer.status_code, len(answer.content)) == (200, written[-1])
        assert written[-1] > ROWS * BYTES
        assert sizes[-1] < 4_000_000
    assert len(written) == len(PATHS)


def test_a_download_that_fails_half_way_is_an_error_and_no_file(
    project: Project, session: Session, sign_in: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, url = sign_in("operator"), f"/projects/{project.slug}/samples.jsonl"
    lines = client.get(url).text.splitlines()
    samples = session.scalar(select(func.count()).where(Completion.model_version_id.is_not(None)))
    assert len({json.loads(line)["prompt_id"] for line in lines}) == samples == ROWS

    original, seen = views.sample_lines, []

    def breaking(*arguments: Any, **named: Any) -> Any:
        for line in original(*arguments, **named):
            seen.append(line)
            if len(seen) > ROWS // 2:
                raise OSError("broken")
            yield line

    monkeypatch.setattr(views, "sample_lines", breaking)
    answer = client.get(url)
    assert answer.status_code == 500
    assert "Content-Disposition" not in answer.headers
    assert seen[0].strip() not in answer.text
