"""The leaderboard: its page, the board that large projects load afterwards, and its figures as CSV."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from sqlalchemy.orm import Session

from app.access.guards import ProjectDep, StaffDep
from app.cache import Cache, Computed
from app.db import SessionDep
from app.insights.routes import KindsDep
from app.insights.views import KINDS
from app.leaderboard import queries, service, views
from app.leaderboard.service import Summary
from app.limits import FormRoute
from app.models import Project
from app.render import attachment, page

router = APIRouter(prefix="/projects/{project_slug}/leaderboard", route_class=FormRoute)

# With more judgments, of any kind, the page comes first and the board is loaded afterwards.
AT_ONCE = 5_000
# Imported judgments are about imported responses, which are no policy's: there is nothing of theirs to choose.
WORDS = {kind: words for kind, words in KINDS.items() if kind != "imported"}
DEFAULT = ("person",)


def _judges(kinds: KindsDep) -> tuple[str, ...]:
    return tuple(kind for kind in kinds if kind in WORDS) or DEFAULT


JudgesDep = Annotated[tuple[str, ...], Depends(_judges)]


def _reference(
    project: ProjectDep, session: SessionDep, reference: Annotated[int | None, Query(ge=1, lt=2**63)] = None
) -> int | None:
    """Return the id if it is a policy of the project; other ids share the default board."""
    return reference if reference in queries.policies(session, project.id) else None


ReferenceDep = Annotated[int | None, Depends(_reference)]


def _boards(request: Request) -> Cache[Summary]:
    boards: Cache[Summary] = request.app.state.leaderboards
    return boards


BoardsDep = Annotated[Cache[Summary], Depends(_boards)]


@router.get("")
def leaderboard(
    request: Request,
    staff: StaffDep,
    project: ProjectDep,
    session: SessionDep,
    kinds: JudgesDep,
    boards: BoardsDep,
    reference: ReferenceDep,
    wait: bool = False,
) -> Response:
    """Show the page. Large projects load the board afterwards unless `wait` is set."""
    key = project.id, kinds, reference
    at_once = wait or boards.cached(key) is not None or queries.size(session, project.id) <= AT_ONCE
    shown = _shown(_computed(session, project, kinds, reference, boards), kinds) if at_once else {"summary": None}
    return page(request, "leaderboard/page.html", **shown, **_shared(project, kinds, reference))


@router.get("/board")
def board(
    request: Request,
    staff: StaffDep,
    project: ProjectDep,
    session: SessionDep,
    kinds: JudgesDep,
    boards: BoardsDep,
    reference: ReferenceDep,
) -> Response:
    """Show everything below the heading."""
    shown = _shown(_computed(session, project, kinds, reference, boards), kinds)
    return page(request, "leaderboard/_board.html", **shown, **_shared(project, kinds, reference))


@router.get("/figures.csv")
def figures(
    staff: StaffDep,
    project: ProjectDep,
    session: SessionDep,
    kinds: JudgesDep,
    boards: BoardsDep,
    reference: ReferenceDep,
) -> Response:
    computed = _computed(session, project, kinds, reference, boards)
    return attachment(f"{project.slug}-leaderboard.csv", views.summary_csv(computed.value))


def _computed(
    session: Session, project: Project, kinds: tuple[str, ...], reference: int | None, boards: Cache[Summary]
) -> Computed[Summary]:
    key = project.id, kinds, reference
    return boards.get(key, lambda: service.summary(session, project.id, kinds, reference))


def _shown(computed: Computed[Summary], kinds: tuple[str, ...]) -> dict[str, Any]:
    return {
        "summary": computed.value,
        "view": views.view(computed),
        "others": views.others(computed.value, kinds),
    }


def _shared(project: Project, kinds: tuple[str, ...], reference: int | None) -> dict[str, Any]:
    chosen = "" if kinds == DEFAULT else "&".join(f"kind={kind}" for kind in kinds)
    return {
        "here": f"/projects/{project.slug}/leaderboard",
        "kinds": kinds,
        "words": WORDS,
        "machines": views.machines(kinds),
        "is_default": kinds == DEFAULT,
        "query": "&".join(part for part in (chosen, f"reference={reference}" if reference else "") if part),
        "least_judgments": service.leaderboard.LEAST_JUDGMENTS,
        "least_prompts": service.leaderboard.FEWEST,
        "gap": service.leaderboard.GAP,
        "most": service.MOST,
    }
