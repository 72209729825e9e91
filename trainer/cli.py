"""The recipes without queue or database: `python -m trainer.cli reward spec.json out/`.

A spec file is the JSON that the service freezes with each run (`app.specs`); locations in it are absolute paths or
relative to `--store`. The result lands in the output folder together with its spec and `metrics.jsonl`.
"""

import importlib
import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from app.artifacts import ArtifactStore
from app.errors import InvalidInput, PrefloopError
from app.specs import RUN_SPEC, RunSpec
from trainer.default_model import DEFAULT_MODEL, fetch_model
from trainer.reporting import ConsoleReporter

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Train and sample without the service.")

SpecFile = Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="the run's spec, as JSON")]
Output = Annotated[Path, typer.Argument(help="the folder to write; it must not exist")]
Store = Annotated[Path, typer.Option("--store", help="what locations in the spec are relative to")]


def read_spec(path: Path, kind: str) -> RunSpec:
    """The spec in a file. Raises InvalidInput naming the field that is wrong, or another kind of run."""
    try:
        spec = RUN_SPEC.validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidInput(f"{path}: {'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}.") from error
    if spec.kind != kind:
        raise InvalidInput(f"{path} is the spec of a {spec.kind} run, not of a {kind} run.")
    return spec


def run(kind: str, spec_file: Path, output: Path, store: Path) -> None:
    """Runs a recipe; a run that fails leaves nothing at `output`."""
    if output.exists():
        raise InvalidInput(f"{output} exists already.", "Choose a folder that does not.")
    spec = read_spec(spec_file, kind)
    train = importlib.import_module(f"trainer.recipes.{kind}").train
    output = output.absolute()
    with ArtifactStore(output.parent).folder(output.name) as staging:
        reporter = ConsoleReporter(path=staging / "metrics.jsonl")
        result = train(spec, ArtifactStore(store.absolute()), reporter, staging)
        (staging / "spec.json").write_text(spec.model_dump_json(indent=2) + "\n")
    print(json.dumps(result._asdict(), indent=2))


@app.command("fetch-model")
def fetch_model_command(
    name: Annotated[str, typer.Argument(help="hub name, folder or location")] = DEFAULT_MODEL,
    store: Store = Path(),
) -> None:
    """Bring a model into the store and print its location."""
    print(fetch_model(ArtifactStore(store.absolute()), name, say=lambda line: print(line, file=sys.stderr)))


@app.command()
def sample(spec: SpecFile, output: Output, store: Store = Path()) -> None:
    """Sample responses to prompts."""
    run("sample", spec, output, store)


@app.command()
def reward(spec: SpecFile, output: Output, store: Store = Path()) -> None:
    """Train a reward model."""
    run("reward", spec, output, store)


@app.command()
def dpo(spec: SpecFile, output: Output, store: Store = Path()) -> None:
    """Train a policy by direct preference optimisation."""
    run("dpo", spec, output, store)


@app.command()
def ppo(spec: SpecFile, output: Output, store: Store = Path()) -> None:
    """Train a policy against a reward model."""
    run("ppo", spec, output, store)


@app.command()
def evaluate(spec: SpecFile, output: Output, store: Store = Path()) -> None:
    """Score a policy's responses by slice."""
    run("evaluate", spec, output, store)


def main() -> None:
    """Entry point: errors meant for a person are two lines, not a traceback."""
    try:
        app()
    except PrefloopError as error:
        print(f"{error.title}: {error.message}", file=sys.stderr)
        if error.advice:
            print(error.advice, file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
