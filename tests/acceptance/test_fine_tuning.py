"""Fine-tuning with real parts: demonstrations go in, a new reference comes out, and later rounds stay close to it."""

import json
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.artifacts import ArtifactStore
from app.datasets.reading import ImportFile
from app.datasets.service import ImportOptions, import_files
from app.models import ModelVersion, Run
from app.rounds import outcomes, queries, service
from app.settings import Settings
from tests import factories
from tests.acceptance.test_round import metric
from tests.rounds.loop import config, make_project
from tests.trainer.conftest import build_model
from trainer.service.worker import work_until_empty

pytestmark = pytest.mark.long


@pytest.mark.parametrize("algorithm", ["dpo", "ppo"])
def test_imported_demonstrations_become_the_reference_of_the_next_round(
    session: Session, settings: Settings, tmp_path: Path, algorithm: str
) -> None:
    store = ArtifactStore(settings.artifacts_root)
    build_model(tmp_path / "model")
    project = make_project(session, str(tmp_path / "model"), train=20, heldout=3)
    lines = [
        {"prompt": f"What is {n}?", "response": "It is a number.", "split": "heldout" if n > 21 else "train"}
        for n in range(24)
    ]
    file = tmp_path / "answers.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    import_files(session, project, [ImportFile(file, file.name)], ImportOptions())
    operator = factories.user(session, "operator")
    fine_tuning = config("sft", learning_rate=2e-3, epochs=3, prompts=6)
    first = service.start(session, store, project, operator, fine_tuning)
    session.commit()
    work_until_empty(settings, settings.database_url or "")
    session.expire_all()
    assert (first.state, first.error) == ("done", None)
    assert [run.kind for run in queries.runs_of(session, first.id)] == ["freeze", "sft", "sample"]
    losses = metric(session, first, "sft", "loss")
    assert losses[-1] < losses[0]
    tuned = session.get_one(ModelVersion, project.reference_id)
    assert (tuned.role, project.policy_id) == ("sft", tuned.id)

    chosen = config(algorithm, epochs=1, episodes=16, prompts=4, ptx=algorithm == "ppo")
    second = service.start(session, store, project, operator, chosen)
    session.commit()
    work_until_empty(settings, settings.database_url or "")
    session.expire_all()
    assert (second.state, second.error) == ("done", None)
    run = session.scalars(select(Run).where(Run.kind == algorithm)).one()
    assert run.spec["reference"] == {"base": tuned.base, "adapter": tuned.adapter}
    # The policy was kept close to the fine-tuned model, and its KL is measured to that model.
    assert metric(session, second, "evaluate", outcomes.KL) != []
    if algorithm == "ppo":
        assert store.exists(run.spec["ptx"])
    assert not list((store.root / "checkpoints").glob("*/*"))
