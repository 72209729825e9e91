"""Suites on demand: a policy takes suites outside any round."""

from collections.abc import Sequence

from sqlalchemy.orm import Session

from app.artifacts import ArtifactStore
from app.audit import audit
from app.errors import Conflict, InvalidInput, NotFound
from app.models import ModelVersion, Project, Run, User
from app.queue import enqueue_run
from app.rounds.adoption import lost_files
from app.rounds.stages import ref, room
from app.specs import Generation, SuitesSpec
from app.suites import service as suites


def take_suites(
    session: Session,
    store: ArtifactStore,
    project: Project,
    operator: User,
    model: ModelVersion,
    suite_ids: Sequence[int],
) -> Run:
    """Enqueue a run in which a policy takes the newest version of these suites, or of all that are not retired.

    Raises:
        InvalidInput: the model is a reward model, or its files are gone.
        NotFound: a suite's file is gone.
        Conflict: there is no such suite, or the policy has such a run under way.
    """
    if model.role == "reward":
        raise InvalidInput(f"{model.name} is a reward model, which answers nothing.", "Choose a policy.")
    if problem := lost_files(store, model):
        raise problem
    refs = suites.to_run(session, project.id, suite_ids)
    if not refs:
        raise Conflict("There is no suite to run.", "Add one, or bring back the one that was retired.")
    if gone := [each.location for each in refs if not store.exists(each.location)]:
        raise NotFound(f"The file of a suite is gone: {gone[0]}.", "Restore it from a backup, or add the suite again.")
    session.refresh(project, with_for_update={"key_share": True})
    if any(run.spec["model"] == model.id for run in suites.under_way(session, project.id)):
        raise Conflict(f"{model.name} is taking suites already.", "Wait until that run is done, or cancel it.")
    generation = Generation.model_validate(project.generation).model_copy(update={"samples_per_prompt": 1})
    spec = SuitesSpec(
        model=model.id,
        policy=ref(model),
        suites=refs,
        generation=generation,
        max_length=room(SuitesSpec.model_fields["max_length"].default, generation),
    )
    run = Run(project_id=project.id, kind="suites", spec=spec.model_dump(mode="json"))
    session.add(run)
    session.flush()
    enqueue_run(session, run.id)
    audit(session, operator.id, "suite.run", project.id, run=run.id, model=model.name, suites=len(refs))
    return run
