"""Every route with every method and role, and with good and hostile values, all generated from the app.

No response is our fault (5xx), every response has every security header, no role gets more than it may, and people who
are not members of a project cannot find it. A new route fails here until `WHO` says who may call it.
"""

import contextlib
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from fastapi import APIRouter, FastAPI
from httpx import Response
from pydantic import BaseModel
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.headers import PAGES_VARY_BY, SECURITY_HEADERS
from app.main import ROUTERS
from app.models import Base, User
from app.settings import Settings
from tests import factories
from tests.app.world import World, build
from tests.conftest import SignedIn

SignIn = Callable[..., SignedIn]

P = "/projects/{project_slug}"  # ~ below
# Who may call a route: v(isitors, who are not signed in), l(abelers), a(dmins) and o(perators) of the project, and
# i(nstance administrators), who are members of nothing.
WHO = {
    "GET /sign-in": "vlaoi",
    "POST /sign-in": "vlaoi",
    "POST /sign-out": "vlaoi",
    "GET /join/{token}": "vlaoi",
    "POST /join/{token}": "vlaoi",
    "GET /profile": "laoi",
    "POST /profile": "laoi",
    "POST /profile/password": "laoi",
    "POST /profile/sessions/end": "laoi",
    "GET /people": "i",
    "POST /people/invite": "i",
    "POST /people/members": "i",
    "POST /people/links/{link_id}/revoke": "i",
    "POST /people/{user_id}/reset": "i",
    "POST /people/{user_id}": "i",
    "GET /": "laoi",
    "GET /projects": "laoi",
    "POST /projects": "i",
    "GET ~": "lao",
    "GET ~/members": "a",
    "POST ~/members": "a",
    "POST ~/members/invite": "a",
    "POST ~/members/links/{link_id}/revoke": "a",
    "POST ~/members/{user_id}": "a",
    "POST ~/members/{user_id}/remove": "a",
    "GET ~/settings": "a",
    "POST ~/settings": "a",
    "POST ~/settings/labeling": "a",
    "POST ~/settings/archive": "a",
    "POST ~/settings/restore": "a",
    "POST ~/settings/delete": "a",
    "POST ~/model": "a",
    "GET /label": "laoi",
    "GET ~/label": "l",
    "GET ~/label/ahead": "l",
    "POST ~/label/here": "l",
    "POST ~/label/undo": "l",
    "GET ~/label/mine": "l",
    "GET ~/label/judgments/{judgment_id}": "l",
    "POST ~/label/judgments/{judgment_id}": "l",
    "POST ~/label/{lease_id}": "l",
    "POST ~/label/{lease_id}/skip": "l",
    "POST ~/label/{lease_id}/release": "l",
    "GET ~/rubric": "la",
    "POST ~/rubric": "a",
    "POST ~/rubric/publish": "a",
    "POST ~/rubric/discard": "a",
    "POST ~/rubric/preview": "a",
    "POST ~/rubric/edit": "a",
    "GET ~/rubric/diff": "a",
    "GET ~/rubric/{version:int}": "a",
    "GET ~/rubric/{form}": "a",
    "GET ~/quiz": "l",
    "POST ~/quiz": "l",
    "GET ~/quiz/people": "ao",
    "POST ~/quiz/{attempt}/{item}": "l",
    "GET ~/comparisons": "a",
    "POST ~/comparisons": "a",
    "GET ~/prompts": "a",
    "POST ~/prompts": "a",
    "GET ~/prompts/new": "a",
    "GET ~/prompts/{prompt_id}": "a",
    "GET ~/prompts/{prompt_id}/edit": "a",
    "POST ~/prompts/{prompt_id}/edit": "a",
    "POST ~/prompts/{prompt_id}/retire": "a",
    "POST ~/prompts/{prompt_id}/bring-back": "a",
    "GET ~/review/relabel": "a",
    "POST ~/review/relabel": "a",
    "GET ~/review": "a",
    "GET ~/review/next": "a",
    "GET ~/review/{comparison_id}": "a",
    "POST ~/review/{comparison_id}/recuse": "a",
    "POST ~/review/{comparison_id}/verdict": "a",
    "POST ~/review/{comparison_id}/more": "a",
    "POST ~/review/{comparison_id}/{action}": "a",
    "GET ~/agreement": "ao",
    "GET ~/agreement/live": "ao",
    "GET ~/agreement/table": "ao",
    "GET ~/agreement/attention": "ao",
    "GET ~/agreement/section": "ao",
    "GET ~/labelers": "ao",
    "GET ~/labelers/attention": "ao",
    "POST ~/labelers/refit": "ao",
    "GET ~/labelers/groups": "a",
    "POST ~/labelers/groups": "a",
    "POST ~/labelers/groups/{group_id}/members": "a",
    "POST ~/labelers/groups/{group_id}/members/{labeler_id}/remove": "a",
    "POST ~/labelers/groups/{group_id}/delete": "a",
    "GET ~/labelers/{labeler_id}": "ao",
    "POST ~/labelers/{labeler_id}/pause": "a",
    "POST ~/labelers/{labeler_id}/resume": "a",
    "GET ~/labelers/{labeler_id}/remove": "a",
    "POST ~/labelers/{labeler_id}/remove": "a",
    "POST ~/labelers/{labeler_id}/withdraw-written": "a",
    "GET ~/assignment": "a",
    "POST ~/assignment": "a",
    "GET ~/calibration": "a",
    "POST ~/calibration/look": "a",
    "POST ~/calibration/{item_id}/retire": "a",
    "POST ~/calibration/{item_id}/bring-back": "a",
    "POST ~/calibration/{item_id}/answer": "a",
    "GET ~/data": "a",
    "POST ~/data": "a",
    "POST ~/data/preview": "a",
    "POST ~/data/imports/{import_id}/undo": "a",
    "GET ~/data/export": "a",
    "GET ~/rounds": "ao",
    "GET ~/rounds/new": "o",
    "GET ~/rounds/preview": "o",
    "POST ~/rounds": "o",
    "GET ~/rounds/{number}": "ao",
    "GET ~/rounds/{number}/status": "ao",
    "GET ~/rounds/{number}/metrics": "ao",
    "GET ~/rounds/{number}/files/{name}": "ao",
    "GET ~/monitors/figures.csv": "ao",
    "POST ~/rounds/{number}/cancel": "o",
    "POST ~/rounds/{number}/retry": "o",
    "POST ~/rounds/{number}/checkpoints/discard": "o",
    "GET ~/rounds/{number}/samples": "ao",
    "GET ~/rounds/{number}/samples.jsonl": "ao",
    "GET ~/samples": "ao",
    "GET ~/samples.jsonl": "ao",
    "POST ~/sampling": "o",
    "POST ~/sampling/{run_id}/cancel": "o",
    "POST ~/sampling/{run_id}/retry": "o",
    "GET ~/audit-log": "a",
    "GET ~/automatic-rounds": "ao",
    "POST ~/automatic-rounds": "o",
    "POST ~/automatic-rounds/off": "o",
    "POST ~/automatic-rounds/approve": "o",
    "GET ~/progress": "ao",
    "GET ~/progress/files/{name}": "ao",
    "GET ~/progress/compare": "ao",
    "GET ~/progress/compare.csv": "ao",
    "GET ~/playground": "ao",
    "POST ~/playground": "ao",
    "GET ~/playground/{chat_id}": "ao",
    "GET ~/playground/{chat_id}/turns": "ao",
    "POST ~/playground/{chat_id}": "ao",
    "POST ~/playground/{chat_id}/turns/{turn_id}/again": "ao",
    "POST ~/playground/{chat_id}/turns/{turn_id}/vote": "ao",
    "POST ~/playground/{chat_id}/turns/{turn_id}/ask": "ao",
    "POST ~/playground/{chat_id}/turns/{turn_id}/failure": "ao",
    "POST ~/playground/{chat_id}/turns/{turn_id}/correction": "ao",
    "GET ~/monitors": "ao",
    "GET ~/monitors/{monitor_name}": "ao",
    "POST ~/monitors/{monitor_name}/reviews": "ao",
    "GET ~/suites": "ao",
    "POST ~/suites": "o",
    "GET ~/suites/new": "o",
    "POST ~/suites/run": "o",
    "POST ~/suites/run/{demand_id}/cancel": "o",
    "POST ~/suites/starters": "o",
    "POST ~/suites/red-team": "o",
    "GET ~/suites/{suite_id}": "ao",
    "POST ~/suites/{suite_id}": "o",
    "POST ~/suites/{suite_id}/versions": "o",
    "POST ~/suites/{suite_id}/retire": "o",
    "POST ~/suites/{suite_id}/bring-back": "o",
    "GET ~/suites/{suite_id}/cases.jsonl": "ao",
    "GET ~/suites/{suite_id}/answers.jsonl": "ao",
    "GET ~/judges": "ao",
    "POST ~/judges": "o",
    "GET ~/judges/new": "o",
    "GET ~/judges/{judge_id}": "ao",
    "POST ~/judges/{judge_id}": "o",
    "POST ~/judges/{judge_id}/test": "o",
    "POST ~/judges/{judge_id}/runs": "o",
    "POST ~/judges/{judge_id}/runs/{run_id}/cancel": "o",
    "POST ~/judges/{judge_id}/admission": "o",
    "POST ~/judges/{judge_id}/off": "o",
    "POST ~/judges/{judge_id}/on": "o",
    "GET ~/judges/{judge_id}/judgments.jsonl": "ao",
    "GET ~/constitution": "ao",
    "POST ~/constitution": "o",
    "GET ~/constitution/{constitution_id}": "ao",
    "POST ~/constitution/{constitution_id}/cancel": "o",
    "POST ~/constitution/{constitution_id}/resume": "o",
    "GET ~/constitution/{constitution_id}/revisions.jsonl": "ao",
    "GET ~/models": "ao",
    "GET ~/leaderboard": "ao",
    "GET ~/leaderboard/board": "ao",
    "GET ~/leaderboard/figures.csv": "ao",
    "GET ~/models/{model_id}": "ao",
    "GET ~/models/{model_id}/files/{name}": "ao",
    "POST ~/models/{model_id}/adopt": "o",
    "GET ~/thumbs": "l",
    "POST ~/thumbs": "l",
    "GET ~/demonstrations/write": "l",
    "POST ~/demonstrations/write/{task_id}": "l",
    "POST ~/demonstrations/write/{task_id}/skip": "l",
    "POST ~/demonstrations/preview": "la",
    "GET ~/demonstrations/own": "l",
    "GET ~/demonstrations/own/{demonstration_id}": "l",
    "POST ~/demonstrations/own/{demonstration_id}": "l",
    "GET ~/demonstrations": "lao",
    "GET ~/demonstrations/review": "a",
    "GET ~/demonstrations/ask": "a",
    "POST ~/demonstrations/ask": "a",
    "POST ~/demonstrations/ask/withdraw": "a",
    "GET ~/demonstrations/{demonstration_id}": "a",
    "POST ~/demonstrations/{demonstration_id}/approve": "a",
    "POST ~/demonstrations/{demonstration_id}/reject": "a",
    "GET ~/red-team": "lao",
    "GET ~/red-team/own": "l",
    "POST ~/red-team": "l",
    "GET ~/red-team/attempts": "ao",
    "POST ~/red-team/attempts/accept": "a",
    "GET ~/red-team/{attempt_id}": "lao",
    "GET ~/red-team/{attempt_id}/answer": "lao",
    "POST ~/red-team/{attempt_id}/rating": "l",
    "POST ~/red-team/{attempt_id}/again": "l",
    "POST ~/red-team/{attempt_id}/cancel": "l",
}
ROLES = {"v": (), "l": ("labeler",), "a": ("admin",), "o": ("operator",), "i": ("administrator",)}


class Route(NamedTuple):
    method: str
    path: str

    @property
    def name(self) -> str:
        return f"{self.method} {self.path}".replace(P, "~")

    @property
    def parameters(self) -> list[str]:
        return re.findall(r"{(\w+)(?::\w+)?}", self.path)

    def address(self, values: dict[str, object]) -> str:
        return re.sub(r"{(\w+)(?::\w+)?}", lambda found: str(values[found[1]]), self.path)


def routes_of(router: Any, prefix: str = "") -> Iterator[Route]:
    for route in router.routes:
        if hasattr(route, "methods"):
            yield from (Route(method, prefix + route.path) for method in sorted(route.methods))
        elif isinstance(getattr(route, "original_router", None), APIRouter):
            yield from routes_of(route.original_router, prefix + route.include_context.prefix)


ROUTES = [route for router in ROUTERS for route in routes_of(router)]


def test_who_may_call_every_route_is_written_down(app: FastAPI) -> None:
    assert {route.name for route in ROUTES} - set(WHO) == set(), "say in WHO who may call it"
    assert set(WHO) - {route.name for route in ROUTES} == set(), "no longer there"
    # These are all routes: everything else that is served is public.
    assert {route.path for route in app.routes if hasattr(route, "path")} == {"/healthz", "/static"}


def fields_of(router: Any, prefix: str = "") -> Iterator[tuple[Route, list[str]]]:
    """Yield the routes with the names of the fields in their queries and forms."""
    for route in router.routes:
        if hasattr(route, "methods"):
            names = {name for dependant in _with_dependencies(route.dependant) for name in _names(dependant)}
            yield from ((Route(method, prefix + route.path), sorted(names)) for method in route.methods)
        else:
            yield from fields_of(route.original_router, prefix + route.include_context.prefix)


def _with_dependencies(dependant: Any) -> Iterator[Any]:
    yield dependant
    for each in dependant.dependencies:
        yield from _with_dependencies(each)


def _names(dependant: Any) -> Iterator[str]:
    for parameter in (*dependant.query_params, *dependant.body_params):
        kind = parameter.field_info.annotation
        yield from kind.model_fields if isinstance(kind, type) and issubclass(kind, BaseModel) else [parameter.alias]


# Some routes check their form by themselves: these get all names of fields that exist.
EVERY_NAME = sorted(
    {
        name
        for module in list(sys.modules)
        if re.fullmatch(r"app\.\w+\.\w*forms?", module)
        for kind in vars(sys.modules[module]).values()
        if isinstance(kind, type) and issubclass(kind, BaseModel)
        for name in kind.model_fields
    }
)


@pytest.fixture
def world(session: Session, settings: Settings) -> World:
    built = build(session, settings.artifacts_root)
    parameters = {name for route in ROUTES for name in route.parameters}
    assert parameters - set(built.values) == set(), "give it a value in tests/app/world.py"
    return built


@pytest.fixture
def clients(sign_in: SignIn, world: World) -> Iterator[dict[str, SignedIn]]:
    """Clients by role; labelers' work in the world belongs to the labeler among them."""
    opened = {name: sign_in(*roles, user=world.labeler if name == "l" else None) for name, roles in ROLES.items()}
    with contextlib.ExitStack() as stack:
        for client in opened.values():
            stack.enter_context(client.http)  # one event loop for all its requests takes a third of the time
        yield opened


@pytest.fixture
def everybody(sign_in: SignIn, world: World) -> Iterator[SignedIn]:
    """A client with all roles."""
    client = sign_in("labeler", "admin", "operator", "administrator")
    with client.http:
        yield client


def batched(names: list[str], n: int) -> Iterator[list[str]]:
    yield from (names[i : i + n] for i in range(0, len(names), n))


def call(client: SignedIn, method: str, address: str, **kwargs: Any) -> Response:
    """Call a route and check the rules for all responses."""
    if method == "POST":
        answer = client.post(address, kwargs.pop("data", {}), **kwargs)
    else:
        answer = client.http.request(method, address, **kwargs)
    asked = f"{method} {address[:200]} {answer.status_code}"
    assert answer.status_code < 500, asked
    for name, value in SECURITY_HEADERS.items():
        assert answer.headers.get_list(name) == [value], asked
    if "public" not in answer.headers["Cache-Control"]:
        assert answer.headers["Cache-Control"] == "no-store", asked
        assert set(PAGES_VARY_BY) <= set(re.split(", ?", answer.headers["Vary"])), asked
    return answer


def is_let_in(client: SignedIn, answer: Response) -> bool:
    if client.user is None:
        return answer.status_code != 401 and not answer.headers.get("location", "").startswith("/sign-in?next=")
    return answer.status_code != 403


def test_every_role_gets_what_it_may_and_nothing_else(
    clients: dict[str, SignedIn], world: World, session: Session
) -> None:
    people = session.scalar(select(func.count()).select_from(User))
    wrong = []
    # Signing out comes last, and routes that change things come after routes that show them.
    for route in sorted(ROUTES, key=lambda route: (route.path == "/sign-out", route.method)):
        may = WHO[route.name]
        # Roles without the right come first, while everything they ask for still exists.
        for role in sorted(clients, key=lambda role: role in may):
            if role == "i" and route.path.startswith(P):
                continue  # they find no project: see below
            answer = call(clients[role], route.method, route.address(world.values))
            if is_let_in(clients[role], answer) != (role in may):
                wrong.append(f"{role} {route.method} {route.path} {answer.status_code}")
            if role == may[0] and route.method == "GET":
                call(clients[role], "GET", route.address(world.values), headers={"HX-Request": "true"})
    assert wrong == []
    assert session.scalar(select(func.count()).select_from(User)) == people  # nobody signed up


def sizes(session: Session) -> list[int | None]:
    """Return the number of rows in every table."""
    session.rollback()
    return [session.scalar(select(func.count()).select_from(table)) for table in Base.metadata.sorted_tables]


@pytest.mark.parametrize("who", ["stranger", "administrator"])
def test_who_is_no_member_finds_no_project(who: str, sign_in: SignIn, world: World, session: Session) -> None:
    """For every request, and in every format, the response is that for a project that does not exist."""
    other = factories.project(session)
    session.commit()
    client = (
        sign_in(who)
        if who == "administrator"
        else sign_in(user=factories.member(session, other, "labeler", "admin", "operator"))
    )
    before = sizes(session)
    with client.http:
        for route in ROUTES:
            if not route.path.startswith(P):
                continue
            for headers in ({}, {"HX-Request": "true"}, {"Accept": "application/json"}):
                hidden, missing = (
                    call(client, route.method, route.address(world.values | {"project_slug": slug}), headers=headers)
                    for slug in (world.project.slug, "nothing")
                )
                assert (hidden.status_code, missing.status_code) == (404, 404), route
                assert hidden.text.replace(world.project.slug, "nothing") == missing.text, route
                assert "boom()" not in hidden.text
    assert sizes(session) == before


def test_visitors_are_sent_to_sign_in_before_they_learn_what_is_there(
    clients: dict[str, SignedIn], world: World
) -> None:
    for route in ROUTES:
        if route.path.startswith(P):
            for slug in (world.project.slug, "nothing"):
                address = route.address(world.values | {"project_slug": slug})
                answer = call(clients["v"], route.method, address)
                if route.method == "GET":
                    assert (answer.status_code, answer.headers["location"]) == (303, f"/sign-in?next={address}"), route
                else:  # a redirect does not send a form again
                    assert answer.status_code == 401, route


IN_ADDRESSES = ("-1", "9" * 19, "9" * 4400, "x", "%00", "..%2f..%2fetc%2fpasswd", "%ff%0d%0aX-Evil:1")
IN_FORMS = ("9" * 20, "nan", "\0", "\u202e<script>\uffff", "9" * 4400)


def test_hostile_addresses_are_refused_or_not_found(everybody: SignedIn, world: World) -> None:
    tried = set()
    for route in ROUTES:
        for name in route.parameters:
            if name == "project_slug" and name in tried:
                continue  # it is parsed in one place for all routes
            tried.add(name)
            for value in IN_ADDRESSES:
                answer = call(everybody, route.method, route.address(world.values | {name: value}))
                if len(value) > 1000 or value == "%00":
                    assert answer.status_code in (414, 422)
                assert answer.status_code < 400 or "<title>" in answer.text  # a page with an explanation


def test_hostile_queries_and_forms_are_no_fault_of_ours(everybody: SignedIn, world: World) -> None:
    for route, names in (each for router in ROUTERS for each in fields_of(router)):
        if route.path == "/sign-out":
            continue
        # Most routes without names of their own read nothing.
        for value in IN_FORMS if names else IN_FORMS[:1] if route.method == "GET" else IN_FORMS[:3]:
            for some in batched(names or EVERY_NAME, 10 if len(value) > 1000 else 1000):  # addresses are limited
                sent = {"params" if route.method == "GET" else "data": dict.fromkeys(some, value)}
                call(everybody, route.method, route.address(world.values), **sent)


def test_other_methods_are_not_allowed_and_carry_the_headers_too(clients: dict[str, SignedIn], world: World) -> None:
    for path in {route.path for route in ROUTES}:
        for method in ("PUT", "DELETE", "OPTIONS"):
            answer = call(clients["v"], method, Route(method, path).address(world.values))
            assert answer.status_code == 405
