"""A model's signed manifest: its origin, down to counts of judgments, and the digest of each of its files.

It is stored as manifest.json in the folder of an exported model. With the folder and the instance's public key, anyone
can check that the instance made these files and that nobody changed the manifest. It identifies people by number, not
by name.

The signature is Ed25519 (RFC 8032) over the JSON of everything else: sorted keys, no spaces, UTF-8. The key is derived
from the instance's secret key, so it stays the same as long as that does.
"""

import base64
import hashlib
import hmac
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import BaseModel, Field
from sqlalchemy.orm import Session

from app.artifacts import digest_file
from app.errors import Conflict, InvalidInput, NotFound
from app.lineage import origins, queries
from app.lineage.queries import Origin
from app.models import ModelVersion

NAME = "manifest.json"
FORMAT = "prefloop-manifest-1"
MOST_LISTED = 20  # files that an error names


def key_of(secret: bytes) -> Ed25519PrivateKey:
    """Derive the instance's signing key from its secret key."""
    return Ed25519PrivateKey.from_private_bytes(hmac.digest(secret, b"manifest", hashlib.sha256))


def public_key(key: Ed25519PrivateKey) -> str:
    """Return the public key in base64, as in a manifest."""
    return base64.b64encode(key.public_key().public_bytes_raw()).decode()


def contents(session: Session, model: ModelVersion) -> dict[str, Any]:
    """Return everything in a model's manifest except its files and signature."""
    own, *line = queries.chain(session, model.id)
    said: dict[str, Any] = {"format": FORMAT, "model": _model(model)}
    origin = origins.of(session, model)
    if origin is not None and own.snapshot is not None:
        learned, run = origin.learned, origin.run
        said["made_by"] = {"kind": run.kind, "settings": run.spec, "finished_at": _time(run.finished_at)}
        said["code"] = origin.code
        said["learned_from"] = {
            "snapshot": own.snapshot.digest,
            "read_at": _time(own.snapshot.created_at),
            "judgments": learned.judgments,
            "demonstrations": learned.demonstrations,
            "thumbs": learned.thumbs,
            "people": {f"person {count.key}": count.n for count in learned.people},
            "rubric_versions": {str(count.key): count.n for count in learned.rubrics},
            "ai_judges": {count.name: count.n for count in learned.judges},
            "ai_revised": {
                "comparisons": learned.ai_revised.comparisons,
                "demonstrations": learned.ai_revised.demonstrations,
                "thumbs": learned.ai_revised.thumbs,
                "critics": {count.name: count.n for count in learned.ai_revised.critics},
            },
        }
        said["reward_model"] = _model(origin.reward_model) if origin.reward_model else None
    said["comes_from"] = [_ancestor(each) for each in line]
    return said


def _model(model: ModelVersion) -> dict[str, Any]:
    return {"name": model.name, "role": model.role, "digest": model.digest, "made_at": _time(model.created_at)}


def _ancestor(origin: Origin) -> dict[str, Any]:
    read = origin.snapshot.digest if origin.snapshot else None
    return _model(origin.model) | {"round": origin.round.number if origin.round else None, "snapshot": read}


def _time(moment: Any) -> str | None:
    return moment.isoformat() if moment else None


def write(folder: Path, said: dict[str, Any], key: Ed25519PrivateKey) -> None:
    """Sign the manifest of the model in this folder, and write it there."""
    whole = said | {"files": _digests(folder), "signed_by": public_key(key)}
    whole["signature"] = base64.b64encode(key.sign(_signed(whole))).decode()
    (folder / NAME).write_text(json.dumps(whole, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def _digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file, in hex, by its path within the folder; links are not followed."""
    there = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    files = sorted(path for path in there if path != folder / NAME)
    return {path.relative_to(folder).as_posix(): digest_file(path) for path in files}


def _signed(whole: dict[str, Any]) -> bytes:
    rest = {name: value for name, value in whole.items() if name != "signature"}
    return json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


class Named(BaseModel):
    """A model, as a manifest names it."""

    name: str


class AIRevised(BaseModel):
    """How much of it contains texts by AI critics."""

    comparisons: Annotated[int, Field(ge=0)] = 0
    demonstrations: Annotated[int, Field(ge=0)] = 0
    thumbs: Annotated[int, Field(ge=0)] = 0


class Learned(BaseModel):
    """What a model learned from, as a manifest tells it.

    people: judgments and texts by person. ai_judges: comparisons that only AI judges judged, by judge.
    """

    snapshot: str
    judgments: Annotated[int, Field(ge=0)]
    demonstrations: Annotated[int, Field(ge=0)]
    thumbs: Annotated[int, Field(ge=0)]
    people: dict[str, int]
    ai_judges: dict[str, int] = {}
    ai_revised: AIRevised = AIRevised()


class Manifest(BaseModel):
    """What is read of a manifest. Anybody can write and sign one, so it is checked like any other input."""

    format: Literal["prefloop-manifest-1"]
    model: Named
    learned_from: Learned | None = None
    files: dict[str, str]
    signed_by: str


def printable(text: str) -> str:
    """Return text from a manifest or a file name with what a terminal must not print replaced."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; refuse one with a repeated key, which people and programs may read differently."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice")
    return found


def verify(folder: Path, key: str | None = None) -> Manifest:
    """Check a folder's manifest, its signature, and every file.

    Args:
        key: the public key that must have signed it, in base64; None: any.

    Raises:
        NotFound: there is no manifest.
        InvalidInput: the manifest or the key is malformed.
        Conflict: it was signed by another key or changed since; or a file was changed, is missing, or was added; or
            there is a link, which may lead out of the folder.
    """
    path = folder / NAME
    if not path.is_file():
        raise NotFound(f"{folder} holds no {NAME}.", "`prefloop model export` writes it beside a model's files.")
    try:
        whole = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once)
        found = Manifest.model_validate(whole)
        signature, signed_by = base64.b64decode(whole["signature"], validate=True), found.signed_by
        signer = Ed25519PublicKey.from_public_bytes(base64.b64decode(signed_by, validate=True))
        signed = _signed(whole)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InvalidInput(f"{path} is not a manifest of Prefloop.", "Export the model once more.") from None
    if key is not None and key != signed_by:
        raise Conflict(
            f"The manifest was signed by {signed_by}, not by {key}.",
            "Ask the person who gave you the folder where it comes from.",
        )
    try:
        signer.verify(signature, signed)
    except InvalidSignature:
        raise Conflict("The manifest was changed after it was signed.", "Do not trust what it says.") from None
    files, there = found.files, _digests(folder)
    wrong = [f"{path.relative_to(folder).as_posix()} is a link" for path in folder.rglob("*") if path.is_symlink()]
    wrong += [f"{name} was changed" for name in sorted(files.keys() & there.keys()) if files[name] != there[name]]
    wrong += [f"{name} is missing" for name in sorted(files.keys() - there.keys())]
    wrong += [f"{name} was added" for name in sorted(there.keys() - files.keys())]
    if wrong:
        listed = printable("; ".join(sorted(wrong)[:MOST_LISTED]))
        more = f"; and {len(wrong) - MOST_LISTED:,} more" if len(wrong) > MOST_LISTED else ""
        raise Conflict(f"The files differ from the signed files: {listed}{more}.", "Do not use this model.")
    return found
