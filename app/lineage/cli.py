"""`prefloop model`: take a model out with its signed manifest, and check one."""

import shutil
from pathlib import Path
from typing import Annotated

import typer

from app.artifacts import ArtifactStore
from app.errors import Conflict, NotFound
from app.lineage import manifest, queries
from app.postgres import command_session
from app.projects import queries as projects
from app.render import counted
from app.settings import Settings

model_app = typer.Typer(no_args_is_help=True, help="Models: export with a signed manifest, and verify.")


@model_app.command()
def export(
    name: Annotated[str, typer.Argument(help="the model's name, such as policy-3")],
    output: Annotated[Path, typer.Argument(help="a folder that does not exist yet")],
    project: Annotated[str, typer.Option("--project", "-p", help="the project's address (slug)")],
) -> None:
    """Copy a model's files to a folder, with a manifest of where it comes from, signed by this instance.

    A policy that is an adapter is exported as the adapter alone. The manifest names its base model.
    """
    settings = Settings()
    if output.exists():
        raise Conflict(f"{output} already exists.", "Name a folder that does not exist yet.")
    with command_session(settings) as session:
        found = projects.by_slug(session, project)
        model = queries.by_name(session, found.id, name) if found else None
        if model is None:
            raise NotFound(f"There is no model {name} in a project {project}.", "The Models page lists all models.")
        store = ArtifactStore(settings.artifacts_root, settings.outside_models)
        said = manifest.contents(session, model) | {"base": model.base if model.adapter else None}
        source = store.resolve(model.adapter or model.base)
    staging = output.with_name(f"{output.name}.part")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        shutil.copytree(source, staging)
        manifest.write(staging, said, manifest.key_of(settings.signing_key))
        staging.rename(output)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    typer.echo(f"{name} lies in {output}. Check it with `prefloop model verify {output}`.")


@model_app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="the folder of an exported model")],
    key: Annotated[str | None, typer.Option(help="the public key that must have signed it")] = None,
) -> None:
    """Check an exported model: that its files are those that were signed, and that nobody changed the manifest."""
    found = manifest.verify(folder, key)
    said = found.said
    files = counted(len(said["files"]), "file")
    typer.echo(f"{said['model']['name']}: {files}, as signed by {found.signed_by}.")
    if learned := said.get("learned_from"):
        kinds = ("judgments", "demonstrations", "thumbs")
        read = ", ".join(counted(learned[kind], kind[:-1]) for kind in kinds if learned[kind])
        people = counted(len(learned["people"]), "person", "people")
        typer.echo(f"It learned from {read} of {people}, frozen as {learned['snapshot'][:16]}.")
    if key is None:
        typer.echo("Compare the key with the one that `prefloop model key` shows where the model was made.")


@model_app.command("key")
def show_key() -> None:
    """Show the public key with which this instance signs manifests."""
    typer.echo(manifest.public_key(manifest.key_of(Settings().signing_key)))
