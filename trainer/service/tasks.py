"""Execute a run from the queue: take it, run its recipe, and record its result or the error."""

import logging
from collections.abc import Callable, Iterator, Sequence
from threading import Event
from types import ModuleType
from typing import Any

from pydantic import ValidationError
from sqlalchemy import delete
from sqlalchemy.orm import Session, sessionmaker

from app.artifacts import ArtifactStore, digest_folder
from app.errors import InvalidInput, ModelUnavailable, PrefloopError
from app.models import Metric, Run
from app.rounds import service as rounds
from app.rounds.freezing import Frozen
from app.rounds.service import NewSample
from app.rows import SuiteAnswer
from app.settings import Settings
from app.specs import (
    RUN_SPEC,
    BestOfNSpec,
    DPOSpec,
    EvaluateSpec,
    FreezeSpec,
    GRPOSpec,
    JudgeSpec,
    OnPolicyDPOSpec,
    PPOSpec,
    ReviseSpec,
    RewardSpec,
    RLOOSpec,
    RunSpec,
    SampleSpec,
    SFTSpec,
    SuitesSpec,
)
from app.suites import service as suites
from trainer.checkpoints import Checkpoints
from trainer.evaluation.suites import OnSuite, to_lines
from trainer.processes import accelerator, device_name
from trainer.recipes import best_of_n, dpo, evaluate, group, on_policy_dpo, ppo, reward, sample, sft
from trainer.recipes import suites as suites_recipe
from trainer.recipes.sample import Completion, OnCompletions
from trainer.reporting import PolicyResult, RewardResult, RunCancelled
from trainer.service.code_version import code
from trainer.service.recording import RunLost, RunRecorder, WorkerStopping, is_outage, patiently
from trainer.service.trackers import FOLDER as TENSORBOARD
from trainer.service.trackers import Trackers
from trainer.speed.memory import give_back_memory, is_out_of_memory

log = logging.getLogger(__name__)

# A run that was started this often without writing a checkpoint kills its worker, probably by using up all memory.
MAX_ATTEMPTS = 3

# A retry repeats the run with the same settings, so settings that save memory need a new run.
MORE_MEMORY = (
    "Retry with more memory, or start anew with a smaller microbatch size, gradient checkpointing or shorter responses."
)

TrainingSpec = SFTSpec | RewardSpec | DPOSpec | OnPolicyDPOSpec | BestOfNSpec | PPOSpec | RLOOSpec | GRPOSpec
RECIPES: dict[str, ModuleType] = {
    "sft": sft,
    "reward": reward,
    "dpo": dpo,
    "on_policy_dpo": on_policy_dpo,
    "best_of_n": best_of_n,
    "ppo": ppo,
    "rloo": group,
    "grpo": group,
}


class Runner:
    """Executes runs, one at a time. `stopping` is set when the worker must end."""

    def __init__(
        self, sessions: sessionmaker[Session], store: ArtifactStore, stopping: Event, settings: Settings
    ) -> None:
        self.sessions, self.store, self.stopping, self.settings = sessions, store, stopping, settings
        self.current: RunRecorder | None = None
        self._checked = CheckedModels(store)

    def execute(self, run_id: int) -> None:
        """Execute a run. It also returns if the run failed: the run and its round record the error.

        Raises:
            Unavailable: the database stayed unavailable; the run is resumed once it is back.
        """
        taken = patiently(lambda: self._take(run_id))
        if taken is None:
            return
        spec, recorder = taken
        self.current = recorder
        with recorder.log.listening():
            self._work(spec, recorder)

    def _work(self, spec: RunSpec, recorder: RunRecorder) -> None:
        """Run the recipe and record how the run ended."""
        run_id = recorder.run_id
        try:
            self._run(spec, recorder)
        except RunLost as error:
            log.warning("%s", error)
        except WorkerStopping:
            log.info("Run %d goes back to the queue: the worker is stopping.", run_id)
            self.give_back()
        except RunCancelled:
            log.info("Run %d was cancelled.", run_id)
            if self._end(recorder, rounds.run_cancelled):
                self.store.remove(rounds.checkpoints_of(run_id))
        except Exception as error:
            log.exception("Run %d (%s) failed", run_id, spec.kind)
            message = describe(error)
            self._end(recorder, lambda session, run: rounds.run_failed(session, run, message))
        finally:
            self.current = None
            recorder.trackers.close()
            self._tidy()

    def _tidy(self) -> None:
        free_memory()

    def give_back(self) -> None:
        """Return the current run to the queue; this attempt does not count."""
        if self.current is not None:
            self._end(self.current, rounds.run_given_back)

    def _take(self, run_id: int) -> tuple[RunSpec, RunRecorder] | None:
        """Mark the run as taken by this worker; return None if it is already over or cannot start."""
        try:
            with self.sessions.begin() as session:
                return self._begin(session, run_id)
        except Exception as error:
            if is_outage(error):
                raise
            # A run that cannot start now never can; left in the queue it would wait for ever.
            log.exception("Run %d cannot begin", run_id)
            message = describe(error)
            with self.sessions.begin() as session:
                rounds.run_failed(session, session.get_one(Run, run_id, with_for_update={"key_share": True}), message)
            return None

    def _begin(self, session: Session, run_id: int) -> tuple[RunSpec, RunRecorder] | None:
        run = session.get(Run, run_id, with_for_update={"key_share": True})
        if run is not None and run.state in ("queued", "running") and run.cancel_requested:
            rounds.run_cancelled(session, run)
        if run is None or run.state not in ("queued", "running"):
            if run is not None and run.state == "cancelled":
                self.store.remove(rounds.checkpoints_of(run_id))
            return None
        if run.attempts_since_checkpoint >= MAX_ATTEMPTS:
            doing = run.progress_message or "starting"
            advice = "Retry with more memory." if run.kind == "freeze" else MORE_MEMORY
            rounds.run_failed(
                session,
                run,
                f"The worker died {run.attempts_since_checkpoint} times while {doing}; it probably ran out of memory. "
                + advice,
            )
            return None
        rounds.run_started(session, run)
        run.device = device_name()
        assert run.started_at is not None
        spec = _spec_of(run)
        trackers = Trackers(self.settings.tracker_names, f"run-{run_id}-{run.kind}", self.store.root / TENSORBOARD)
        recorder = RunRecorder(self.sessions, run_id, run.started_at, self.stopping, self.store, run.log, trackers)
        recorder.log.say(f"Attempt {run.attempts} begins on {run.device}.")
        if not self._checkpoints(spec, recorder).any():
            # Without a checkpoint the run starts over. (With one, it overwrites what it recorded after the checkpoint.)
            session.execute(delete(Metric).where(Metric.run_id == run_id))
            trackers.forget()
            self.store.remove(rounds.samples_of(run_id))
        log.info("Run %d (%s) starts, attempt %d.", run_id, run.kind, run.attempts)
        return spec, recorder

    def _run(self, spec: RunSpec, recorder: RunRecorder) -> None:
        self._require_unchanged(spec)
        digest = None
        match spec:
            case SampleSpec():
                result = self._sample(spec, recorder)
            case FreezeSpec():
                return self._freeze(recorder)
            case SuitesSpec():
                result = suites_recipe.take(spec, self.store, recorder, self._keeping(recorder, alone=True))._asdict()
            case JudgeSpec() | ReviseSpec():
                raise AssertionError("trainer.service.judging runs these")
            case EvaluateSpec():
                result = evaluate.evaluate(
                    spec, self.store, recorder, self._storing(recorder), on_suite=self._keeping(recorder)
                )._asdict()
            case _:
                result, digest = self._train(spec, recorder)

        def finish(session: Session, run: Run) -> None:
            rounds.run_finished(session, self.store, run, result, digest, self.settings.sampling_server)

        if self._end(recorder, finish):
            self.store.remove(rounds.checkpoints_of(recorder.run_id))
            log.info("Run %d (%s) is done.", recorder.run_id, spec.kind)

    def _freeze(self, recorder: RunRecorder) -> None:
        """Write the round's snapshots; repeat it if judgments were removed in the meantime."""

        def freeze() -> Frozen:
            with self.sessions() as session:
                round_id = session.get_one(Run, recorder.run_id).round_id
            assert round_id is not None, "only a round is frozen"
            return rounds.freeze(self.sessions, self.store, round_id, recorder.progress)

        def record(frozen: Frozen) -> Callable[[Session, Run], None]:
            return lambda session, run: rounds.record(session, self.store, run, frozen, self.settings.sampling_server)

        while True:
            try:
                self._end(recorder, record(patiently(freeze)))
            except rounds.Changed:
                log.info("Judgments changed while run %d was freezing them: it begins again.", recorder.run_id)
            else:
                return

    def _require_unchanged(self, spec: RunSpec) -> None:
        """Raise ModelUnavailable if the files of a model in the spec differ from what its training run wrote."""

        def recorded() -> dict[str, str]:
            with self.sessions() as session:
                return rounds.digests_of(session, list(_texts_in(spec.model_dump())))

        for location, digest in patiently(recorded).items():
            self._checked.require(location, digest)

    def _train(self, spec: TrainingSpec, recorder: RunRecorder) -> tuple[dict[str, Any], str]:
        """Train a model into the store; its complete folder appears before the run's row is marked as done."""
        location = rounds.output_of(recorder.run_id)
        with self.store.folder(location) as folder:
            train: Callable[..., RewardResult | PolicyResult] = RECIPES[spec.kind].train
            result = train(spec, self.store, recorder, folder, self._checkpoints(spec, recorder))
            # Last check before the folder appears: if another worker has taken over this run while this one was
            # suspended, this worker must not replace the recorded model.
            patiently(recorder.flush)
        return result._asdict() | {"code": code()}, digest_folder(self.store.resolve(location))

    def _checkpoints(self, spec: RunSpec, recorder: RunRecorder) -> Checkpoints:
        """Return the run's checkpoints; writing one counts as progress.

        A resumed run does not repeat the metrics from before its checkpoint, so they are recorded before each save.
        """

        def write() -> None:
            with recorder.held() as (_session, run):
                rounds.run_progressed(run)

        return Checkpoints(
            self.store,
            rounds.checkpoints_of(recorder.run_id),
            spec,
            self.settings.checkpoint_seconds,
            self.settings.checkpoints_kept,
            on_saving=lambda: patiently(recorder.flush),
            on_saved=lambda _step: patiently(write),
            key=self.settings.signing_key,
        )

    def _sample(self, spec: SampleSpec, recorder: RunRecorder) -> dict[str, Any]:
        """Sample responses, continuing after those that an earlier attempt stored."""

        def stored() -> set[tuple[int, int]]:
            with self.sessions() as session:
                return rounds.stored_samples(session, recorder.run_id)

        on_completions = self._storing(recorder, goes_on=True)
        return sample.sample(spec, self.store, recorder, on_completions, patiently(stored))._asdict()

    def _storing(self, recorder: RunRecorder, *, goes_on: bool = False) -> OnCompletions:
        """Return a function that stores each batch of samples and opens the comparisons that it completes.

        With `goes_on`, a resumed run continues after the stored samples, so each batch counts as progress, like a
        checkpoint.
        """

        def store(batch: Sequence[Completion]) -> None:
            samples = [NewSample(*completion) for completion in batch]  # the same fields in the same order

            def write() -> None:
                with recorder.held() as (session, run):
                    rounds.store_samples(session, run, samples)
                    if goes_on:
                        rounds.run_progressed(run)

            patiently(write)

        return store

    def _keeping(self, recorder: RunRecorder, *, alone: bool = False) -> OnSuite:
        """Return a function that stores both policies' answers to a suite as an artifact of the run.

        alone: one policy took it, so the other's fields are left out.
        """

        def keep(version: int, answers: Sequence[SuiteAnswer]) -> None:
            def write() -> None:
                with recorder.held(), self.store.file(suites.answers_of(recorder.run_id, version)) as path:
                    path.write_text(to_lines(answers, alone=alone), encoding="utf-8")

            patiently(write)

        return keep

    def _end(self, recorder: RunRecorder, record: Callable[[Session, Run], None]) -> bool:
        """Record how the run ended, with its last metrics and log; wait for the database if it is unavailable.

        Returns False if the run, and so its checkpoints, belongs to another worker by now.
        """

        def write() -> None:
            with recorder.held() as (session, run):
                recorder.write_facts(run)
                recorder.write_metrics(session)
                record(session, run)

        try:
            patiently(write)
        except RunLost as error:
            log.warning("%s", error)
            return False
        return True


class CheckedModels:
    """Models whose files were compared with their runs' digests. Hashing is slow, so unchanged files are read once."""

    def __init__(self, store: ArtifactStore) -> None:
        self.store = store
        self._seen: dict[str, object] = {}

    def require(self, location: str, digest: str) -> None:
        """Raise ModelUnavailable if the files at a location have another digest; a missing location is ignored here."""
        if not self.store.exists(location):
            return
        folder = self.store.resolve(location)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        # Every change sets a file's ctime, and users cannot reset it.
        state = digest, [(path, path.stat().st_ino, path.stat().st_size, path.stat().st_ctime_ns) for path in files]
        if self._seen.get(location) == state:
            return
        if digest_folder(folder) != digest:
            raise ModelUnavailable(
                f"The model {location} is not what was trained: its files were changed or replaced.",
                "Restore it from a backup of the artifacts, or choose another model.",
            )
        self._seen[location] = state


def _texts_in(value: Any) -> Iterator[str]:
    """Yield all strings in a nested value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _texts_in(each)


def _spec_of(run: Run) -> RunSpec:
    """Return a run's spec. Raises InvalidInput if it was written by an incompatible version of the program."""
    try:
        return RUN_SPEC.validate_python(run.spec)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidInput(
            f"The specification of run {run.id} cannot be read: {where}: {first['msg']}.",
            "It was probably written by another version: start a new round.",
        ) from error


def free_memory() -> None:
    """Free the models of a finished run: accelerate keeps prepared models, and modules form reference cycles."""
    if accelerator.cache_info().currsize:
        accelerator().free_memory()
    give_back_memory()


def describe(error: Exception) -> str:
    """Return the error text for the round's page, as valid UTF-8 without NUL, which PostgreSQL requires."""
    if isinstance(error, PrefloopError):
        said = str(error)
    elif is_out_of_memory(error):
        said = f"The machine ran out of memory. {MORE_MEMORY}"
    else:
        first_line = (str(error).strip().splitlines() or [""])[0][:500]
        said = f"{type(error).__name__}: {first_line} (unexpected; the worker's log has the details)"
    return said.replace("\0", "").encode(errors="replace").decode()
