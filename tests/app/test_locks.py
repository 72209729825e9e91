"""`make` installs the requirements of pyproject.toml: every requirement has hashes, and no file names a host."""

import json
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent.parent
LOCKS = ROOT / "locks"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
TORCH = "torch"  # whose files differ between machines: CONTRIBUTING.md says why it has no hashes


def pins(name: str) -> dict[str, Requirement]:
    """Return the pinned requirements of a lock file by name; with several markers, the one for this machine."""
    lines = re.sub(r"\\\n", " ", (LOCKS / name).read_text()).splitlines()
    stated = [Requirement(re.split(r"\s--hash|\s#", line)[0]) for line in lines if re.match(r"[A-Za-z]", line)]
    return {canonicalize_name(each.name): each for each in stated if each.marker is None or each.marker.evaluate()}


def group(name: str) -> list[str]:
    """Return the requirements of a group and of the groups that it includes."""
    found: list[str] = []
    for each in PROJECT["dependency-groups"][name]:
        found += [each] if isinstance(each, str) else group(each["include-group"])
    return found


def asked(*groups: str) -> list[Requirement]:
    texts = [*PROJECT["project"]["dependencies"], *PROJECT["build-system"]["requires"]]
    found = [Requirement(text) for text in [*texts, *(text for name in groups for text in group(name))]]
    return [each for each in found if each.marker is None or each.marker.evaluate()]


@pytest.mark.parametrize(("name", "groups"), [("run.txt", ["build"]), ("dev.txt", ["dev"])])
def test_every_requirement_is_locked(name: str, groups: list[str]) -> None:
    locked = pins(name) | pins("torch.txt")
    for wanted in asked(*groups):
        pin = locked.get(canonicalize_name(wanted.name))
        assert pin, f"locks/{name} does not have {wanted.name}: run `make lock`"
        [version] = [each.version for each in pin.specifier]
        assert wanted.specifier.contains(version, prereleases=True), f"{wanted} is locked at {version}: run `make lock`"


@pytest.mark.parametrize("name", ["run.txt", "dev.txt"])
def test_every_pin_has_hashes_and_torch_is_apart(name: str) -> None:
    text = (LOCKS / name).read_text()
    entries = re.split(r"\n(?=[A-Za-z])", text)[1:]
    assert len(entries) > 40
    for entry in entries:
        assert re.match(r"[\w.-]+(\[[\w,-]+\])?==\S+", entry), entry
        assert "--hash=sha256:" in entry, entry
    assert TORCH not in pins(name)
    assert not [each for each in pins(name) if each.startswith(("nvidia-", "cuda-", "triton"))]


def test_what_runs_is_what_is_tested() -> None:
    run, dev = pins("run.txt"), pins("dev.txt")
    assert {name: str(pin.specifier) for name, pin in run.items()}.items() <= {
        name: str(pin.specifier) for name, pin in dev.items()
    }.items()


def test_no_lock_names_a_registry() -> None:
    for path in LOCKS.iterdir():
        assert not re.search(r"://|--(index|extra|find|trusted)", path.read_text()), path
    packages = json.loads((ROOT / "package-lock.json").read_text())["packages"]
    assert not [name for name, package in packages.items() if "resolved" in package]
    assert all("integrity" in package for name, package in packages.items() if name)
