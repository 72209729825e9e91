"""Constitution runs: a real worker asks a real process. What comes of a revision, its marks, errors, and resuming."""

import gzip
import json
import signal
from collections.abc import Callable
from datetime import UTC, datetime
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from app.artifacts import ArtifactStore
from app.constitution import service
from app.datasets import export, full_export, full_import
from app.datasets.reading import ImportFile
from app.demonstrations import service as demonstrations
from app.demonstrations.forms import DecisionForm
from app.domain.replay import Reading
from app.errors import Conflict
from app.judges import choosing_queries
from app.lineage import manifest, origin_queries
from app.models import AIRevision, Comparison, Completion, Demonstration, Judgment, Run
from app.rounds import snapshots
from app.rounds.views import reads
from app.rows import DemonstrationRow, PairRow
from app.settings import Settings
from tests import factories
from tests.conftest import SignedIn
from tests.constitution.scenes import PRINCIPLES, Scene
from tests.waiting import wait_for
from trainer.service.worker import recover, work_until_empty

SignIn = Callable[..., SignedIn]


def work(settings: Settings) -> None:
    work_until_empty(settings, settings.database_url or "")


def done(session: Session, settings: Settings, run: Run) -> Run:
    work(settings)
    session.refresh(run)
    return run


def asked(endpoint: str, model: str) -> list[dict[str, Any]]:
    return [each for each in httpx.get(f"{endpoint}/asked").json() if each["model"] == model]


def test_people_decide_on_a_revision_and_its_mark_follows_it_everywhere(
    session: Session, settings: Settings, sign_in: SignIn, endpoint: str, tmp_path: Path
) -> None:
    scene = Scene(session, endpoint, "wise", name="Carla", prompt_price=2.0, completion_price=10.0)
    project, (answer, *others) = scene.project, scene.answers(3)
    scene.answers(1, "held out", split="heldout")
    factories.completion(session, factories.prompt(session, project), "Imported.")
    run = done(session, settings, scene.start(demonstrations=True))
    assert (run.state, run.result, run.error) == ("succeeded", {"answers": 3, "failed": 0, "before": 0}, None)
    rows = scene.rows()
    assert rows.keys() == {answer.id, *(each.id for each in others)}
    for each in (answer, *others):
        row = rows[each.id]
        # As the paper says: drawn for each answer; the seed that is stored with the run decides.
        principle = Random(f"7 {each.id}").choice(PRINCIPLES)
        assert (row.principle, row.critique) == (principle, f"It falls short of: {principle}")
        assert (row.outcome, row.text) == ("revised", f"{each.text} Improved.")
        assert (row.judge_id, row.served_model, row.rubric_id) == (scene.critic.id, "served-wise", scene.rubric.id)
        assert (row.prompt_tokens, row.completion_tokens) == (200, 20)
        assert row.cost == pytest.approx((200 * 2 + 20 * 10) / 1e6)

    # Each is an ordinary open comparison, and a demonstration that nobody has approved.
    opened = {each.completion_a_id: each for each in session.scalars(select(Comparison))}
    assert opened.keys() == rows.keys()
    comparison, written = opened[answer.id], session.get_one(Demonstration, rows[answer.id].demonstration_id)
    assert (comparison.purpose, comparison.state, comparison.overlap) == ("train", "open", project.overlap)
    assert comparison.completion_b_id == rows[answer.id].revised_id
    assert (written.state, written.text, written.author_id) == ("pending", f"{answer.text} Improved.", None)
    assert (written.completion_id, written.ai_revised) == (answer.id, True)
    marked = session.scalars(select(Completion.id).where(Completion.ai_revised)).all()
    assert set(marked) == {row.revised_id for row in rows.values()}
    # No judge is asked about them: it may have written them.
    assert choosing_queries.to_judge(session, scene.critic, scene.rubric.id, "open", 10) == []

    # Labelers see two responses and no mark; staff see it.
    labeler = factories.user(session)
    session.commit()
    seen = sign_in(user=labeler).get(f"/projects/{project.slug}/label").text
    assert "Improved." in seen
    assert not [word for word in ("Carla", "made by AI", "revision", "ai_revis", "wise") if word in seen]
    admin, shown = sign_in("admin"), f"/projects/{project.slug}"
    for page in (f"prompts/{answer.prompt_id}", f"demonstrations/{written.id}", "demonstrations"):
        assert "made by AI" in admin.get(f"{shown}/{page}").text, page
    assert "AI revision by Carla" in admin.get(f"{shown}/review/{comparison.id}").text

    # People prefer the revision, and an admin approves an edited demonstration: both stay marked in what is frozen.
    for each in opened.values():
        factories.judgment(session, each, preference=2, labeler_id=labeler.id)
        each.state, each.consensus, each.p_b, each.p_tie = "settled", 2, 0.9, 0.0
    form = DecisionForm(seen=demonstrations.seen(written), text="Edited.")
    demonstrations.approve(session, project, factories.user(session, "admin"), written.id, form)
    plain = factories.comparison(session, project, state="settled", consensus=2, p_b=0.9, p_tie=0.0)
    factories.judgment(session, plain, preference=2, labeler_id=labeler.id)
    session.commit()
    store = ArtifactStore(settings.artifacts_root)
    found = snapshots.chosen(session, project.id, Reading())
    pairs = snapshots.write_comparisons(session, store, project.id, found)
    imitated = snapshots.write_demonstrations(session, store, project.id)
    by_id = {row.comparison_id: row for row in read(store, pairs.location, PairRow)}
    assert {id_: row.ai_revised for id_, row in by_id.items()} == {
        plain.id: (),
        **{each.id: ("b",) for each in opened.values()},
    }
    assert (by_id[comparison.id].source, by_id[comparison.id].preference) == ("people", 2)
    assert [(row.response, row.ai_revised) for row in read(store, imitated.location, DemonstrationRow)] == [
        ("Edited.", True)
    ]
    assert reads("dpo", pairs.counts) == "4 comparisons, 3 of them with AI revisions"
    assert reads("sft", imitated.counts) == "1 demonstrations, 1 of them with AI revisions"

    # Lineage and the manifest.
    now = datetime.now(UTC)
    held, ptx = (snapshots.add_snapshot(session, project.id, each, now) for each in (pairs, imitated))
    about = {"snapshot_id": held.id, "ptx_snapshot_id": ptx.id, "policy_before_id": scene.policy.id}
    round_ = factories.round_(session, project, **about)
    training = factories.run(session, project, round_id=round_.id, state="succeeded", result={})
    model = factories.model(session, project, run_id=training.id, parent_id=scene.policy.id)
    session.commit()
    learned = origin_queries.learned_from(session, round_).ai_revised
    assert (learned.comparisons, learned.demonstrations, learned.thumbs) == (3, 1, 0)
    assert [(each.name, each.n) for each in learned.critics] == [("Carla", 3)]
    told = manifest.contents(session, model)["learned_from"]["ai_revised"]
    assert told == {"comparisons": 3, "demonstrations": 1, "thumbs": 0, "critics": {"Carla": 3}}
    page_ = sign_in(user=scene.operator).get(f"{shown}/models/{model.id}").text
    assert "in 3 comparisons, 1 demonstration" in " ".join(page_.split())

    # Exports, and a full export that is imported again.
    export.write_preferences(session, project, tmp_path / "pairs.jsonl", progress=lambda *_: None)
    lines = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert sorted(line["ai_revised"] for line in lines) == ["", "chosen", "chosen", "chosen"]
    export.write_demonstrations(session, project, tmp_path / "written.jsonl", progress=lambda *_: None)
    assert json.loads((tmp_path / "written.jsonl").read_text())["ai_revised"] is True
    full_export.write_full(session, project, tmp_path / "full.jsonl", progress=lambda *_: None)
    whole = ImportFile(tmp_path / "full.jsonl", "full.jsonl")
    copy = full_import.restore(session, whole, lambda *_: None).project
    of_copy = select(func.count()).where(Demonstration.project_id == copy.id, Demonstration.ai_revised)
    assert session.scalar(of_copy) == 3
    assert session.scalar(select(func.count()).where(Completion.ai_revised)) == 6


def read(store: ArtifactStore, location: str, kind: Any) -> list[Any]:
    with gzip.open(store.resolve(location), "rt") as lines:
        return [kind.model_validate_json(line) for line in lines]


def test_outcomes_by_name_and_what_failed_is_taken_again(session: Session, settings: Settings, endpoint: str) -> None:
    scene = Scene(session, endpoint, "named", max_tokens=300)
    questions = ("", "repeat", "nothing back", "ramble", "no end", "a long question")
    good, same, empty, long, cut, refused = (scene.answers(1, question)[0] for question in questions)
    run = done(session, settings, scene.start(longest=500))
    assert (run.state, run.result) == ("succeeded", {"answers": 6, "failed": 4, "before": 0})
    rows = scene.rows()
    assert (rows[good.id].outcome, rows[same.id].outcome) == ("revised", "unchanged")
    assert {each.id: rows[each.id].error for each in (empty, long, cut, refused)} == {
        empty.id: "The revision is empty",
        long.id: "The revision is too long: 1,209 characters, and at most 500 are allowed",
        cut.id: "The revision is too long: it was cut after 10 tokens",
        refused.id: "The endpoint refuses the question (400): the context is too long",
    }
    assert session.scalar(select(func.count()).select_from(Comparison)) == 1
    # Another run takes what failed, and nothing else; the revision is compared once.
    again = scene.start(longest=5000)
    assert set(again.spec["completions"]) == {empty.id, long.id, cut.id, refused.id}
    assert done(session, settings, again).result == {"answers": 4, "failed": 3, "before": 0}
    assert session.scalar(select(func.count()).select_from(Comparison)) == 2
    # Another critic may take all of them, without tags; one that says nothing ends its run by name.
    untagged = Scene(session, endpoint, "untagged")
    [answer] = untagged.answers(1)
    done(session, settings, untagged.start())
    assert untagged.rows()[answer.id].text == f"{answer.text} Improved."
    speechless = Scene(session, endpoint, "speechless", concurrency=1)
    speechless.answers(12)
    silent = done(session, settings, speechless.start())
    assert (silent.state, silent.error) == (
        "failed",
        "The first 10 answers could not be read. The last one: The critique is empty Choose a model that follows the "
        "form of the answer, or allow more tokens.",
    )


def test_a_killed_run_goes_on_and_stores_nothing_twice(
    session: Session, settings: Settings, endpoint: str, run_worker: Callable[..., ForkServerProcess]
) -> None:
    scene = Scene(session, endpoint, "slow", concurrency=1)
    scene.answers(10)
    run = scene.start(demonstrations=True)
    first = run_worker()
    wait_for(lambda: len(scene.rows()) >= 2, "the first revisions")
    first.kill()
    first.join()
    assert first.exitcode == -signal.SIGKILL
    kept = {row.id: row.created_at for row in scene.rows().values()}
    assert 2 <= len(kept) < 10
    session.execute(text("UPDATE procrastinate_workers SET last_heartbeat = now() - interval '1 hour'"))
    assert recover(session) == [run.id]
    session.commit()
    assert (done(session, settings, run).state, run.error) == ("succeeded", None)
    after = {row.id: row.created_at for row in scene.rows().values()}
    assert {id_: after[id_] for id_ in kept} == kept
    for table in (AIRevision, Comparison, Demonstration):
        assert session.scalar(select(func.count()).select_from(table)) == 10
    # Only what was under way when it was killed is asked again: two questions an answer.
    assert 20 <= len(asked(endpoint, "slow")) <= 22
    assert session.scalar(select(func.count()).select_from(Judgment)) == 0


def test_an_endpoint_that_is_away_fails_by_name_and_the_run_continues(
    session: Session, settings: Settings, endpoint: str
) -> None:
    scene = Scene(session, retries=0)
    scene.answers(2)
    run = done(session, settings, scene.start())
    assert run.state == "failed"
    assert "The endpoint at http://127.0.0.1:9/v1 cannot be reached" in (run.error or "")
    run.spec = run.spec | {"url": f"{endpoint}/v1"}  # as if it had come back
    service.resume(session, run, scene.operator)
    session.commit()
    assert (done(session, settings, run).state, len(scene.rows())) == ("succeeded", 2)


def test_what_cannot_start_says_why(session: Session) -> None:
    scene = Scene(session)
    with pytest.raises(Conflict, match="There is no answer to revise"):
        scene.start()
    scene.answers(3, domain="law")
    with pytest.raises(Conflict, match="There is no answer to revise"):
        scene.start(domain="cooking")
    run = scene.start(domain="law", count=2)
    assert len(run.spec["completions"]) == 2
    with pytest.raises(Conflict, match="A constitution run is under way"):
        scene.start()
    run.state = "cancelled"
    factories.rubric(session, scene.project, version=2)
    with pytest.raises(Conflict, match="Rubric version 2 has no principles"):
        scene.start()
    scene.critic.off_at = datetime.now(UTC)
    with pytest.raises(Conflict, match="is switched off"):
        scene.start()
