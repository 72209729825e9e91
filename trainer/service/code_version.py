"""The version of the code, which every run's result includes, so that a model can be traced to it."""

import hashlib
from functools import cache
from importlib.metadata import version
from pathlib import Path

from app.artifacts import digest_file

ROOT = Path(__file__).parent.parent.parent


@cache
def code() -> dict[str, str]:
    """Return the versions of Prefloop and of the libraries that affect training.

    `sources` is the SHA-256 in hex over the paths and contents of Prefloop's own Python files. It distinguishes two
    states of the code that have the same version number.
    """
    sha = hashlib.sha256()
    for path in sorted(path for package in ("app", "trainer") for path in (ROOT / package).rglob("*.py")):
        sha.update(f"{path.relative_to(ROOT).as_posix()}\0{digest_file(path)}\n".encode())
    libraries = ("prefloop", "torch", "transformers", "peft", "accelerate")
    return {name: version(name) for name in libraries} | {"sources": sha.hexdigest()}
