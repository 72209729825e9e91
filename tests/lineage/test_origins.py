"""From a model to what people said, and back; and the signed manifest of an exported model."""

import base64
import hashlib
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from sqlalchemy.orm import Session
from typer.testing import CliRunner

from app.artifacts import ArtifactStore, digest_folder
from app.cli import app as commands
from app.errors import Conflict, InvalidInput, NotFound
from app.lineage import manifest, origin_queries, origins
from app.lineage.cli import export
from app.models import (
    Comparison,
    ModelVersion,
    Snapshot,
    SnapshotComparison,
    SnapshotDemonstration,
    User,
)
from app.settings import Settings
from tests import factories
from tests.conftest import SignedIn

FROZEN = datetime(2026, 3, 1, tzinfo=UTC)
KEY = manifest.key_of(b"a secret")
CODE = {"prefloop": "0.1.0", "sources": "ab" * 32, "torch": "2.13.0", "transformers": "5.23.0"}


class Scene:
    """A project whose first round read two comparisons and a demonstration, and whose second read nothing of people."""

    def __init__(self, session: Session) -> None:
        self.project = factories.project(session, slug="p", overlap=3)
        self.ann, self.bob, self.cid = (factories.user(session, name=name) for name in ("Ann", "Bob", "Cid"))
        self.read, self.later = (factories.comparison(session, self.project) for _ in range(2))
        before, after = FROZEN - timedelta(days=1), FROZEN + timedelta(days=1)
        for comparison, who, at in ((self.read, self.ann, before), (self.read, self.bob, before)):
            self.judge(session, comparison, who, created_at=at)
        # Who could not judge taught nothing.
        factories.judgment(session, self.read, preference=None, labeler_id=self.cid.id, created_at=before)
        # Taken back before the snapshot, and after it; and given after it.
        self.judge(session, self.read, self.cid, created_at=before, superseded_at=before, superseded_for="undone")
        self.judge(session, self.later, self.ann, created_at=before, superseded_at=after, superseded_for="undone")
        self.judge(session, self.later, self.cid, created_at=after)
        demonstration = factories.demonstration(session, factories.prompt(session, self.project), author_id=self.bob.id)
        snapshot = self.snapshot(session, "ab12")
        session.add_all(
            [
                *(SnapshotComparison(snapshot_id=snapshot.id, comparison_id=c.id) for c in (self.read, self.later)),
                SnapshotDemonstration(snapshot_id=snapshot.id, demonstration_id=demonstration.id),
            ]
        )
        self.base = factories.model(session, self.project, "base", name="base")
        self.reward = self.made(session, 1, "reward", snapshot, self.base)
        self.first = self.made(session, 1, "policy", snapshot, self.base)
        self.second = self.made(session, 2, "policy", self.snapshot(session, "cd34"), self.first)
        session.commit()

    def judge(self, session: Session, comparison: Comparison, who: User, **values: Any) -> None:
        factories.judgment(session, comparison, preference=1, labeler_id=who.id, **values)

    def snapshot(self, session: Session, digest: str) -> Snapshot:
        made = Snapshot(
            project_id=self.project.id, digest=digest * 16, location=digest, counts={"train": 2}, created_at=FROZEN
        )
        session.add(made)
        session.flush()
        return made

    def made(self, session: Session, number: int, role: str, snapshot: Snapshot, parent: ModelVersion) -> ModelVersion:
        known = {"number": number, "snapshot_id": snapshot.id, "policy_before_id": parent.id}
        round_ = getattr(self, f"round_{number}", None) or factories.round_(session, self.project, **known)
        setattr(self, f"round_{number}", round_)
        run = factories.run(session, self.project, "dpo", round_id=round_.id, spec={"beta": 0.1}, result={"code": CODE})
        name = f"{role}-{number}"
        model = factories.model(session, self.project, role, name=name, parent_id=parent.id, run_id=run.id)
        if role == "reward":
            round_.reward_model_id = model.id
        return model


@pytest.fixture
def scene(session: Session) -> Scene:
    return Scene(session)


def test_a_model_learned_from_what_stood_when_its_round_was_frozen(session: Session, scene: Scene) -> None:
    origin = origins.of(session, scene.first)
    assert origin is not None
    learned = origin.learned
    assert (learned.judgments, learned.demonstrations, learned.thumbs) == (3, 1, 0)
    assert [(count.name, count.n) for count in learned.people] == [("Ann", 2), ("Bob", 2)]
    assert [(count.key, count.n) for count in learned.rubrics] == [(1, 3)]
    assert origin.reward_model is not None
    assert origin.reward_model.id == scene.reward.id
    assert (origin.run.spec, origin.code) == ({"beta": 0.1}, CODE)
    assert origins.of(session, scene.base) is None


def test_back_from_a_person_or_a_comparison_to_the_models(session: Session, scene: Scene) -> None:
    """The second round read nothing of Ann, but its policy comes from one that did."""
    learned = {scene.reward.id, scene.first.id, scene.second.id}
    assert set(origin_queries.models_of_labeler(session, scene.project.id, scene.ann.id)) == learned
    assert set(origin_queries.models_of_comparison(session, scene.project.id, scene.read.id)) == learned
    assert set(origin_queries.models_of_labeler(session, scene.project.id, scene.cid.id)) == set()
    other = factories.project(session)
    assert set(origin_queries.models_of_labeler(session, other.id, scene.ann.id)) == set()
    with pytest.raises(NotFound):
        origins.learners(session, other, scene.ann.id, None)
    with pytest.raises(NotFound):
        origins.learners(session, other, None, scene.read.id)


def test_the_pages(sign_in: Callable[..., SignedIn], scene: Scene) -> None:
    client = sign_in("operator", "admin")
    page = client.get(f"/projects/p/models/{scene.first.id}").text
    assert "Learned from" in page
    assert f'<a href="/projects/p/labelers/{scene.ann.id}"><bdi>Ann</bdi></a>: 2' in page
    listed = client.get(f"/projects/p/models?labeler={scene.ann.id}").text
    assert "Models that learned from <bdi>Ann</bdi>" in listed
    named = re.findall(r'scope="row".*?<bdi>(.*?)</bdi>', listed, re.DOTALL)
    assert ("policy-1" in named, "policy-2" in named, "base" in named) == (True, True, False)
    assert "No model has learned from this" in client.get(f"/projects/p/models?labeler={scene.cid.id}").text
    assert client.get("/projects/p/models?comparison=999999").status_code == 404
    # An operator need not know the labelers' pages.
    assert "<bdi>Ann</bdi>: 2" in sign_in("operator").get(f"/projects/p/models/{scene.first.id}").text


@pytest.fixture
def exported(session: Session, scene: Scene, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "deep").mkdir(parents=True)
    (folder / "weights.safetensors").write_bytes(b"weights")
    (folder / "deep" / "config.json").write_text("{}")
    manifest.write(folder, manifest.contents(session, scene.first), KEY)
    return folder


def test_a_manifest_says_where_a_model_comes_from_and_names_nobody(exported: Path, scene: Scene) -> None:
    found = manifest.verify(exported, manifest.public_key(KEY))
    said = json.loads((exported / "manifest.json").read_text())
    assert found.learned_from is not None
    assert found.learned_from.people == said["learned_from"]["people"]
    assert said["learned_from"]["people"] == {f"person {scene.ann.id}": 2, f"person {scene.bob.id}": 2}
    assert said["learned_from"]["rubric_versions"] == {"1": 3}
    assert said["learned_from"]["snapshot"] == "ab12" * 16
    assert [each["name"] for each in said["comes_from"]] == ["base"]
    assert said["reward_model"]["name"] == "reward-1"
    assert said["made_by"]["settings"] == {"beta": 0.1}
    assert said["code"] == CODE
    text = (exported / "manifest.json").read_text()
    assert not [name for name in ("Ann", "Bob", "example.org") if name in text]


def test_the_signature_is_ed25519_over_the_rest_in_canonical_json(exported: Path) -> None:
    """Checked without our code, as somebody else would."""
    whole = json.loads((exported / "manifest.json").read_text())
    signature = base64.b64decode(whole.pop("signature"))
    rest = json.dumps(whole, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    Ed25519PublicKey.from_public_bytes(base64.b64decode(whole["signed_by"])).verify(signature, rest)
    # `printf weights | sha256sum` and `printf {} | sha256sum`
    assert whole["files"] == {
        "weights.safetensors": "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c",
        "deep/config.json": "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
    }


def edit(folder: Path, **values: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


TAMPERED: dict[str, tuple[Callable[[Path], Any], type[Exception], str]] = {
    "a file": (
        lambda f: (f / "weights.safetensors").write_bytes(b"others"),
        Conflict,
        "weights.safetensors was changed",
    ),
    "one less": (lambda f: (f / "deep" / "config.json").unlink(), Conflict, "deep/config.json is missing"),
    "one more": (lambda f: (f / "code.py").write_text("x"), Conflict, "code.py was added"),
    "a link": (lambda f: (f / "more").symlink_to("/"), Conflict, "more is a link"),
    "a key twice": (
        lambda f: (f / "manifest.json").write_text('{"code": {},' + (f / "manifest.json").read_text()[1:]),
        InvalidInput,
        "not a manifest",
    ),
    "too deep": (lambda f: (f / "manifest.json").write_text("[" * 100_000), InvalidInput, "not a manifest"),
    "signed by a stranger who says nothing": (
        lambda f: manifest.write(f, {}, manifest.key_of(b"another")),
        InvalidInput,
        "not a manifest",
    ),
    "what it says": (lambda f: edit(f, code=None), Conflict, "was changed after it was signed"),
    "the signer": (
        lambda f: edit(f, signed_by=manifest.public_key(manifest.key_of(b"another"))),
        Conflict,
        "was changed after it was signed",
    ),
    "no signature": (lambda f: edit(f, signature=5), InvalidInput, "not a manifest"),
    "no JSON": (lambda f: (f / "manifest.json").write_text("{"), InvalidInput, "not a manifest"),
    "nothing": (lambda f: (f / "manifest.json").unlink(), NotFound, "holds no manifest"),
}


@pytest.mark.parametrize("how", TAMPERED)
def test_what_was_changed_is_found(exported: Path, how: str) -> None:
    change, error, words = TAMPERED[how]
    change(exported)
    with pytest.raises(error, match=words):
        manifest.verify(exported)


def test_a_manifest_of_another_instance_is_told(exported: Path) -> None:
    said = {"format": manifest.FORMAT, "model": {"name": "policy\x1b[31m-1"}}
    manifest.write(exported, said, manifest.key_of(b"another"))
    assert manifest.printable(manifest.verify(exported).model.name) == "policy\ufffd[31m-1"
    with pytest.raises(Conflict, match="The manifest was signed by"):
        manifest.verify(exported, manifest.public_key(KEY))


def test_from_the_command_line(
    session: Session, scene: Scene, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = settings.artifacts_root / "models" / "run-9"
    weights.mkdir(parents=True)
    (weights / "adapter.safetensors").write_bytes(b"adapter")
    scene.first.base, scene.first.adapter = "hub/base", "models/run-9"
    session.commit()
    monkeypatch.setenv("PREFLOOP_HOME", str(settings.home))
    monkeypatch.setenv("DATABASE_URL", str(settings.database_url))
    monkeypatch.setenv("PREFLOOP_SECRET_KEY", "test")
    out = tmp_path / "taken"
    run = CliRunner()
    done = run.invoke(commands, ["model", "export", "policy-1", str(out), "--project", "p"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in out.iterdir()) == ["adapter.safetensors", "manifest.json"]
    key = run.invoke(commands, ["model", "key"]).output.strip()
    checked = run.invoke(commands, ["model", "verify", str(out), "--key", key])
    assert f"policy-1: 1 file, as signed by {key}" in checked.output
    assert "It learned from 3 judgments, 1 demonstration of 2 people" in checked.output
    with pytest.raises(NotFound, match="no model policy-7"):
        run.invoke(commands, ["model", "export", "policy-7", str(out) + "2", "--project", "p"], catch_exceptions=False)
    with pytest.raises(Conflict, match="already exists"):
        run.invoke(commands, ["model", "export", "policy-1", str(out), "--project", "p"], catch_exceptions=False)


def test_an_export_signs_what_the_run_made_and_nothing_else(
    session: Session, scene: Scene, settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store, model = ArtifactStore(settings.artifacts_root), scene.first
    model.base, model.adapter = "models/run-1", None
    with store.folder(model.base) as folder:
        (folder / "weights.safetensors").write_bytes(b"weights")
    model.digest = digest_folder(store.resolve(model.base))
    session.commit()
    for name, value in (("PREFLOOP_HOME", settings.home), ("DATABASE_URL", settings.database_url)):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("PREFLOOP_SECRET_KEY", "test")
    mine = tmp_path / "out.part"
    mine.mkdir()
    (mine / "notes").write_text("somebody's own")

    export(model.name, tmp_path / "out", scene.project.slug)
    found = manifest.verify(tmp_path / "out", manifest.public_key(manifest.key_of(settings.signing_key)))
    assert found.files == {"weights.safetensors": hashlib.sha256(b"weights").hexdigest()}
    assert (mine / "notes").read_text() == "somebody's own"
    (store.resolve(model.base) / "weights.safetensors").write_bytes(b"others")
    with pytest.raises(Conflict, match="are not those that its run made"):
        export(model.name, tmp_path / "again", scene.project.slug)
    assert sorted(path.name for path in tmp_path.iterdir() if "export" in path.name or path.name == "again") == []
