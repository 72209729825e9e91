"""A model's manifest: where it comes from, down to counts of judgments, with the digest of each of its files, signed.

It lies as manifest.json in the folder of an exported model. Whoever has the folder and the instance's public key can
check that the files are the ones the instance made, and that nobody changed what the manifest says. People stand in it
by their numbers, not by their names.

The signature is Ed25519 (RFC 8032) over the JSON of everything else, keys sorted, no spaces, in UTF-8. The key is made
from the instance's secret key, so it stays as long as that does.
"""

import base64
import hashlib
import hmac
import json
from pathlib import Path
from typing import Any, NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from sqlalchemy.orm import Session

from app.artifacts import digest_file
from app.errors import Conflict, InvalidInput, NotFound
from app.lineage import origins, queries
from app.lineage.queries import Origin
from app.models import ModelVersion

NAME = "manifest.json"
FORMAT = "prefloop-manifest-1"


def key_of(secret: bytes) -> Ed25519PrivateKey:
    """The instance's signing key, from its secret key."""
    return Ed25519PrivateKey.from_private_bytes(hmac.digest(secret, b"manifest", hashlib.sha256))


def public_key(key: Ed25519PrivateKey) -> str:
    """In base64, as a manifest names it."""
    return base64.b64encode(key.public_key().public_bytes_raw()).decode()


def contents(session: Session, model: ModelVersion) -> dict[str, Any]:
    """All that a model's manifest says, but its files and signature."""
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
    """Signs the manifest of a model whose files lie in the folder, and puts it beside them."""
    whole = said | {"files": _digests(folder), "signed_by": public_key(key)}
    whole["signature"] = base64.b64encode(key.sign(_signed(whole))).decode()
    (folder / NAME).write_text(json.dumps(whole, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file, in hex, by its path within the folder; links are not followed."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / NAME)
    return {path.relative_to(folder).as_posix(): digest_file(path) for path in files}


def _signed(whole: dict[str, Any]) -> bytes:
    rest = {name: value for name, value in whole.items() if name != "signature"}
    return json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


class Verified(NamedTuple):
    """A manifest that is right: what it says, and who signed it."""

    said: dict[str, Any]
    signed_by: str


def verify(folder: Path, key: str | None = None) -> Verified:
    """Checks a folder's manifest, its signature, and every file.

    Args:
        key: the public key that must have signed it, in base64; none: any.

    Raises:
        NotFound: there is no manifest.
        InvalidInput: it is not one, or the key is not one.
        Conflict: it was signed by another key or changed since; or a file was changed, is missing, or was added.
    """
    path = folder / NAME
    if not path.is_file():
        raise NotFound(f"{folder} holds no {NAME}.", "`prefloop model export` writes it beside a model's files.")
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
        signature, signed_by = base64.b64decode(whole["signature"], validate=True), whole["signed_by"]
        signer = Ed25519PublicKey.from_public_bytes(base64.b64decode(signed_by, validate=True))
        files = dict(whole["files"])
    except (ValueError, KeyError, TypeError):
        raise InvalidInput(f"{path} is not a manifest of Prefloop.", "Export the model once more.") from None
    if key is not None and key != signed_by:
        raise Conflict(
            f"The manifest was signed by {signed_by}, not by {key}.",
            "Ask the person who gave you the folder where it comes from.",
        )
    try:
        signer.verify(signature, _signed(whole))
    except InvalidSignature:
        raise Conflict("The manifest was changed after it was signed.", "Do not trust what it says.") from None
    there = _digests(folder)
    wrong = [f"{name} was changed" for name in sorted(files.keys() & there.keys()) if files[name] != there[name]]
    wrong += [f"{name} is missing" for name in sorted(files.keys() - there.keys())]
    wrong += [f"{name} was added" for name in sorted(there.keys() - files.keys())]
    if wrong:
        raise Conflict(f"The files differ from the signed files: {'; '.join(wrong)}.", "Do not use this model.")
    return Verified(whole, signed_by)
