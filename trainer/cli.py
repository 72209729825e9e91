"""Run recipes without queue or database: `python -m trainer.cli reward spec.json out/`.

A spec file is the JSON that the service stores with each run (`app.specs`); locations in it are absolute paths or
relative to `--store`. The result is written to the output folder together with its spec and `metrics.jsonl`.

To resume a training run that was stopped, give the same command again: until it is done, its checkpoints are next to
the output folder. Several processes (`accelerate launch -m trainer.cli ...`, `torchrun -m trainer.cli ...`) share the
work; only the main process writes and prints.
"""

import functools
import importlib
import json
import logging
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from pydantic import ValidationError
from torch import distributed

from app.artifacts import ArtifactStore, digest_file
from app.errors import InvalidInput, NotFound, PrefloopError, Unavailable
from app.specs import RUN_SPEC, ModelRef, RunSpec
from trainer.checkpoints import Checkpoints
from trainer.models.default_model import DEFAULT_MODEL, fetch_model
from trainer.models.inspection import fingerprint
from trainer.models.loading import loading
from trainer.processes import accelerator
from trainer.reporting import ConsoleReporter
from trainer.reward.card import exported_card
from trainer.reward.model import export_reward_model
from trainer.speed.memory import is_out_of_memory

# If all processes raise an error, the main one should print it. The others wait this long before they print theirs; the
# launcher ends them when the main process exits.
_SECOND_SPEAKER_SECONDS = 10.0

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Train and sample without the service, by specs as in docs/training.md.",
)

SpecFile = Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="the run's spec, as JSON")]
Output = Annotated[Path, typer.Argument(help="the folder to write; it must not exist")]
Store = Annotated[Path, typer.Option("--store", help="what locations in the spec are relative to")]
CheckpointFolder = Annotated[
    Path | None, typer.Option("--checkpoints", help="folder of checkpoints; without it, beside the output")
]
CheckpointSeconds = Annotated[
    float, typer.Option("--checkpoint-seconds", min=0, help="least seconds between two; 0: after every step")
]
Keep = Annotated[int, typer.Option("--keep", min=1, help="newest checkpoints that are kept")]

METRICS, PAGES = "metrics.jsonl", "samples.jsonl"
ONE_RECIPE = {"rloo": "group", "grpo": "group"}  # for other kinds, the recipe has the name of the kind
DATA = ("snapshot", "thumbs", "demonstrations", "prompts", "ptx")  # fields of specs that name files of rows


def read_spec(path: Path, kind: str) -> RunSpec:
    """Read a spec from a file. Raises InvalidInput if a field is invalid or the spec is of another kind of run."""
    try:
        spec = RUN_SPEC.validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidInput(f"{path}: {'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}.") from error
    if spec.kind != kind:
        raise InvalidInput(f"{path} is the spec of a {spec.kind} run, not of a {kind} run.")
    return spec


class CheckpointOptions(NamedTuple):
    """Options of checkpoints: folder (None: next to the output), minimum seconds between two, number to keep."""

    folder: Path | None
    every_seconds: float
    keep: int


def run(kind: str, spec_file: Path, output: Path, store: Path, options: CheckpointOptions | None = None) -> None:
    """Run a recipe. If it fails, there is no `output`, but saved checkpoints stay."""
    if output.exists():
        raise InvalidInput(f"{output} exists already.", "Choose a folder that does not.")
    spec, output, artifacts = read_spec(spec_file, kind), output.absolute(), ArtifactStore(store.absolute())
    train = importlib.import_module(f"trainer.recipes.{ONE_RECIPE.get(kind, kind)}").train
    checkpoints = None
    if options is not None:
        train = functools.partial(train, checkpoints=(checkpoints := checkpoints_of(spec, artifacts, output, options)))
    if accelerator().is_main_process:
        write_output(train, spec, artifacts, output, checkpoints)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            train(spec, artifacts, ConsoleReporter(stream=None), Path(scratch))
    if distributed.is_initialized():
        # Without this call, gloo's threads may abort a process at exit. It is skipped after an error: with NCCL the
        # processes would wait for each other here, and the error would never be printed.
        distributed.destroy_process_group()


def write_output(
    train: Callable[..., Any], spec: RunSpec, artifacts: ArtifactStore, output: Path, checkpoints: Checkpoints | None
) -> None:
    """Run a recipe in the main process: write `output` with spec and metrics, and print the result to stdout."""
    try:
        with ArtifactStore(output.parent).folder(output.name) as staging:
            # Metrics are kept with the checkpoints, so that a resumed run has all of them.
            log = checkpoints.folder if checkpoints is not None else staging
            log.mkdir(parents=True, exist_ok=True)
            result = train(spec, artifacts, ConsoleReporter(path=log / METRICS), staging)
            if checkpoints is not None:
                collect_log(checkpoints.folder, staging)
            (staging / "spec.json").write_text(spec.model_dump_json(indent=2) + "\n")
    except BaseException:
        if checkpoints is not None and not checkpoints.any():
            checkpoints.remove()
        raise
    if checkpoints is not None:
        checkpoints.remove()
    print(json.dumps(result._asdict(), indent=2))


def checkpoints_of(spec: RunSpec, artifacts: ArtifactStore, output: Path, options: CheckpointOptions) -> Checkpoints:
    """Return the checkpoints of the run that writes `output`.

    They are identified by the content of its data and models, because people replace files under the same name.

    Raises:
        ModelUnavailable: the weights of a model are damaged.
    """

    def content(location: str) -> str:
        try:
            path = artifacts.resolve(location)
        except NotFound:
            return location  # a hub name, or a missing file, which the recipe reports
        with loading(location):
            return fingerprint(path) if path.is_dir() else digest_file(path)

    held: dict[str, Any] = {}
    for name, value in spec:
        if isinstance(value, ModelRef):
            held[name] = ModelRef(base=content(value.base), adapter=value.adapter and content(value.adapter))
        elif name in DATA and value:
            held[name] = content(value)
        elif name == "reward_models":
            held[name] = tuple(map(content, value))
    folder = (options.folder or output.with_name(f"{output.name}.checkpoints")).absolute()
    return Checkpoints(
        ArtifactStore(folder.parent), folder.name, spec.model_copy(update=held), options.every_seconds, options.keep
    )


def collect_log(source: Path, target: Path) -> None:
    """Move what the reporter wrote to the output. If a step was done twice (after a resume), keep the later line."""
    lines = {}
    for line in (source / METRICS).read_text().splitlines() if (source / METRICS).exists() else []:
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # the process was killed in the middle of a line
        lines[entry["step"], entry["slice"], *entry] = line
    (target / METRICS).write_text("".join(f"{line}\n" for line in lines.values()))
    if (source / PAGES).exists():
        shutil.copy(source / PAGES, target / PAGES)


@app.command("fetch-model")
def fetch_model_command(
    name: Annotated[str, typer.Argument(help="hub name, folder or location")] = DEFAULT_MODEL,
    store: Store = Path(),
) -> None:
    """Bring a model into the store and print its location."""
    print(fetch_model(ArtifactStore(store.absolute()), name, say=lambda line: print(line, file=sys.stderr)))


@app.command("export-reward")
def export_reward_command(
    folder: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="the reward model's folder")],
    output: Output,
) -> None:
    """Write a reward model for plain transformers: adapters merged in fp32, a folder for each member."""
    if output.exists():
        raise InvalidInput(f"{output} exists already.", "Choose a folder that does not.")
    output = output.absolute()
    with ArtifactStore(output.parent).folder(output.name) as staging:
        written = export_reward_model(folder.absolute(), staging)
        for each in written:
            (each / "README.md").write_text(exported_card(len(written)))
    for each in written:
        print(output / each.relative_to(staging))


def add_recipe(kind: str, about: str) -> None:
    """Add the command of a recipe without checkpoints."""

    @app.command(kind, help=about)
    def command(spec: SpecFile, output: Output, store: Store = Path()) -> None:
        run(kind, spec, output, store)


def add_training(kind: str, about: str) -> None:
    """Add the command of a training recipe, which resumes from its checkpoints."""

    @app.command(kind, help=about)
    def command(
        spec: SpecFile,
        output: Output,
        store: Store = Path(),
        checkpoints: CheckpointFolder = None,
        checkpoint_seconds: CheckpointSeconds = 60.0,
        keep: Keep = 2,
    ) -> None:
        run(kind, spec, output, store, CheckpointOptions(checkpoints, checkpoint_seconds, keep))


add_recipe("sample", "Sample responses to prompts.")
add_training("sft", "Fine-tune a policy on demonstrations.")
add_training("reward", "Train a reward model.")
add_training("dpo", "Train a policy by direct preference optimisation.")
add_training("on_policy_dpo", "Train a policy on comparisons, then on pairs of its own answers.")
add_training("best_of_n", "Train a policy to imitate the best of its own answers.")
add_training("ppo", "Train a policy against a reward model, with a critic.")
add_training("rloo", "Train a policy against a reward model, by leave-one-out baselines.")
add_training("grpo", "Train a policy against a reward model, by group baselines.")
add_recipe("evaluate", "Score a policy's responses by slice.")


def main() -> None:
    """Run the command line; print Prefloop's own errors in two lines, without a traceback."""
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("trainer").setLevel(logging.INFO)
    # peft uses a deprecated name of transformers on every model, and users cannot change that.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
    process = int(os.environ["RANK"]) if "RANK" in os.environ else None  # None if there is only one process
    if process:
        logging.disable(logging.WARNING)
    try:
        try:
            app()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise Unavailable(
                "The machine ran out of memory.",
                "Forward less at once (microbatch_tokens; batch_size of generation), or use a smaller model.",
            ) from error
    except PrefloopError as error:
        if process:
            time.sleep(_SECOND_SPEAKER_SECONDS)
        print(f"{error.title}: {error.message}", file=sys.stderr)
        if error.advice:
            print(error.advice, file=sys.stderr)
        if process is not None:
            sys.stderr.flush()
            os._exit(1)  # at once, so that the launcher ends the other processes
        sys.exit(1)


if __name__ == "__main__":
    main()
