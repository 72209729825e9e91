"""Run recipes only once: a run's output is stored in a folder named after all its inputs, and reused later.

The name is the SHA-256 of the spec and of the base model's weights. Specs name their inputs by location, and every
location in the store is named after its own inputs or content, so the name covers the whole history. An output is
written atomically. A run that was killed resumes from its checkpoint.
"""

import functools
import hashlib
import importlib
import inspect
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import fasteners

import app
import trainer
from app.artifacts import ArtifactStore, digest_file, digest_folder
from app.specs import ModelRef, Spec
from trainer.checkpoints import Checkpoints
from trainer.cli import ONE_RECIPE
from trainer.processes import accelerator
from trainer.reporting import ConsoleReporter
from trainer.speed.memory import give_back_memory

ABOUT = "made.json"
STALE_SECONDS = 86_400  # older files in staging were left by a killed run

Recipe = Callable[[Any, ArtifactStore, ConsoleReporter, Path], Any]


class Made(NamedTuple):
    """A run's output.

    Attributes:
        seconds: wall-clock time of the run when it was made.
        result: the recipe's result as JSON.
        metrics: the last value of every metric, by slice and name.
    """

    location: str
    seconds: float
    result: dict[str, Any]
    metrics: dict[str, dict[str, float]]


class NotMade(Exception):
    """An output does not exist, and the workshop must not make it."""


class Workshop:
    """The store of one benchmark. Several processes may share it; each output is made by one of them.

    Args:
        base: location of the base model.
        say: called with a line when an output is made.
        makes: whether missing outputs are made.
        every_seconds: minimum time between two checkpoints.
    """

    def __init__(
        self,
        root: Path,
        base: str,
        say: Callable[[str], None] = lambda line: None,
        *,
        makes: bool = True,
        every_seconds: float = 60.0,
    ) -> None:
        self.store, self.base, self.say, self.makes = ArtifactStore(root.absolute()), base, say, makes
        self.every_seconds = every_seconds
        self.store.sweep(STALE_SECONDS)
        self.other_code: set[str] = set()

    @functools.cached_property
    def base_digest(self) -> str:
        return digest_folder(self.store.resolve(self.base))

    @property
    def base_ref(self) -> ModelRef:
        return ModelRef(base=self.base)

    def run(self, spec: Spec, recipe: Recipe | None = None) -> Made:
        """Return the output of a spec's recipe; make it if it does not exist.

        Args:
            recipe: the recipe to run; by default the trainer's recipe for the spec's kind.

        Raises:
            NotMade: the output does not exist, and this workshop does not make outputs.
        """
        kind = str(spec.kind)  # type: ignore[attr-defined]
        content = json.dumps({"base": self.base_digest, "spec": spec.model_dump(mode="json")}, sort_keys=True)
        location = f"{kind}/{hashlib.sha256(content.encode()).hexdigest()[:32]}"
        if not self.store.exists(location):
            if not self.makes:
                raise NotMade(location)
            lock = self.store.root / ".locks" / location.replace("/", "-")
            lock.parent.mkdir(parents=True, exist_ok=True)
            with fasteners.InterProcessLock(lock):
                if not self.store.exists(location):  # another process may have made it meanwhile
                    self._make(kind, spec, location, recipe)
        about = json.loads((self.store.resolve(location) / ABOUT).read_text())
        if about["code"] != code_digest():
            self.other_code.add(location)
        return Made(location, about["seconds"], about["result"], about["metrics"])

    def _make(self, kind: str, spec: Spec, location: str, recipe: Recipe | None) -> None:
        self.say(f"{kind} {location[-32:][:8]}")
        train = recipe or recipe_of(kind)
        checkpoints = None
        options: dict[str, Any] = {}
        if "checkpoints" in inspect.signature(train).parameters:
            checkpoints = Checkpoints(self.store, f"checkpoints/{location}", spec, self.every_seconds, keep=1)
            options = {"checkpoints": checkpoints}
        reporter, started = ConsoleReporter(stream=None), time.monotonic()
        with self.store.folder(location) as staging:
            result = train(spec, self.store, reporter, staging, **options)
            metrics: dict[str, dict[str, float]] = {}
            for metric in reporter.recorded:
                metrics.setdefault(metric.slice, {})[metric.name] = metric.value
            about = {
                "code": code_digest(),
                "seconds": round(time.monotonic() - started, 2),
                "spec": spec.model_dump(mode="json"),
                "result": result._asdict() if hasattr(result, "_asdict") else {},
                "metrics": metrics,
            }
            (staging / ABOUT).write_text(json.dumps(about, indent=1) + "\n")
        if checkpoints is not None:
            checkpoints.remove()
        accelerator().free_memory()
        give_back_memory()


def recipe_of(kind: str) -> Recipe:
    """Import and return the recipe of a kind of run."""
    recipe: Recipe = importlib.import_module(f"trainer.recipes.{ONE_RECIPE.get(kind, kind)}").train
    return recipe


@functools.cache
def code_digest() -> str:
    """Return the SHA-256 of the trainer's and specs' sources, which identifies the code behind an output."""
    sha = hashlib.sha256()
    formats = Path(app.__file__).parent
    for path in [*sorted(Path(trainer.__file__).parent.rglob("*.py")), formats / "specs.py", formats / "rows.py"]:
        sha.update(digest_file(path).encode())
    return sha.hexdigest()[:16]
