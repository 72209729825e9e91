"""Members of a project: links add roles, an admin always stays, and people who leave keep no tasks."""

from collections.abc import Callable

import pytest
from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from app.access import members as access
from app.accounts import service as accounts
from app.assignments import service as assignments
from app.assignments.forms import AssignForm
from app.db import make_session_factory
from app.errors import Conflict, Forbidden, Gone, InvalidInput, NotFound
from app.labelers import service as labelers
from app.labeling import assigning
from app.members import service
from app.models import AuditEvent, Comparison, LabelerGroupMember, Lease, Project, ProjectMember, User
from tests import factories
from tests.accounts.people import PASSWORD
from tests.demonstrations.desk import task as wish
from tests.demonstrations.desk import tasks
from tests.labeling import desk
from tests.waiting import start_and_wait_for_its_lock

Work = Callable[[Session], object]


@pytest.fixture
def project(session: Session) -> Project:
    project = factories.project(session, name="Poems")
    factories.rubric(session, project)
    return project


@pytest.fixture
def admin(session: Session, project: Project) -> User:
    return factories.member(session, project, "admin", name="Ada")


def roles(session: Session, project: Project) -> dict[str, list[str]]:
    session.expire_all()
    found = select(User.name, ProjectMember.roles).join(User, User.id == ProjectMember.user_id)
    return dict(session.execute(found.where(ProjectMember.project_id == project.id)).all())


def actions(session: Session) -> list[str]:
    return list(session.scalars(select(AuditEvent.action).order_by(AuditEvent.id)))


def at_once(
    session: Session, engine: Engine, first: Callable[[Session], object], second: Callable[[Session], object]
) -> list[Exception]:
    """Run the second while the first has not committed; return what the second raised."""
    session.commit()
    factory = make_session_factory(engine)
    refused: list[Exception] = []

    def run() -> None:
        try:
            with factory.begin() as own:
                second(own)
        except (Conflict, Gone, NotFound) as error:
            refused.append(error)

    with factory.begin() as own:
        first(own)
        other = start_and_wait_for_its_lock(run, factory)
    other.join(timeout=60)
    assert not other.is_alive()
    return refused


def test_an_account_is_added_by_its_address_with_roles_that_only_grow(
    session: Session, project: Project, admin: User
) -> None:
    bo = factories.account(session, name="Bo", email="bo@example.org")
    factories.account(session, email="off@example.org", is_active=False)
    service.add(session, project, admin, " BO@example.org", ["operator", "labeler"])
    assert roles(session, project) == {"Ada": ["admin"], "Bo": ["labeler", "operator"]}
    service.add(session, project, admin, "bo@example.org", ["labeler"])
    assert roles(session, project)["Bo"] == ["labeler", "operator"]
    service.add(session, project, admin, "bo@example.org", ["admin"])
    assert roles(session, project)["Bo"] == ["labeler", "admin", "operator"]
    assert actions(session) == ["member.added", "member.roles_set"]
    for address in ("nobody@example.org", "off@example.org", ""):
        with pytest.raises(NotFound, match="No account"):
            service.add(session, project, admin, address, ["labeler"])
    for wrong in ([], ["king"]):
        with pytest.raises(InvalidInput):
            service.add(session, project, admin, "bo@example.org", wrong)
    other = factories.project(session)
    assert access.roles_in(session, other.id, bo) == frozenset()


def test_the_last_admin_of_a_project_stays(session: Session, project: Project, admin: User) -> None:
    factories.member(session, project, "labeler", "operator")
    factories.member(session, project, "admin", is_active=False)
    factories.member(session, factories.project(session), "admin")  # of another project
    for change in (
        lambda: service.set_roles(session, project, admin, admin.id, ["labeler"]),
        lambda: service.remove(session, project, admin, admin.id),
    ):
        with pytest.raises(Conflict, match="last admin of “Poems”"):
            change()
    second = factories.member(session, project, "admin")
    service.set_roles(session, project, admin, admin.id, ["labeler"])
    with pytest.raises(Conflict):
        service.remove(session, project, second, second.id)


@pytest.mark.parametrize("way", ["roles", "removal"])
def test_two_admins_who_remove_each_other_leave_one(
    session: Session, engine: Engine, project: Project, admin: User, way: str
) -> None:
    bob = factories.member(session, project, "admin", name="Bob")

    def take_away(actor: User, whom: User) -> Work:
        def work(own: Session) -> None:
            there, by = own.get_one(Project, project.id), own.get_one(User, actor.id)
            if way == "roles":
                service.set_roles(own, there, by, whom.id, ["labeler"])
            else:
                service.remove(own, there, by, whom.id)

        return work

    refused = at_once(session, engine, take_away(admin, bob), take_away(bob, admin))
    assert [type(error) for error in refused] == [Conflict]
    assert [name for name, theirs in roles(session, project).items() if "admin" in theirs] == ["Ada"]


def test_an_account_that_is_switched_off_while_the_other_admin_goes_leaves_one(
    session: Session, engine: Engine, project: Project, admin: User
) -> None:
    bob = factories.member(session, project, "admin")
    chief = factories.user(session, "administrator")

    def switch_off(own: Session) -> None:
        accounts.set_account(
            own, own.get_one(User, chief.id), own.get_one(User, admin.id), is_admin=False, is_active=False
        )

    def leave(own: Session) -> None:
        service.remove(own, own.get_one(Project, project.id), own.get_one(User, bob.id), bob.id)

    assert [type(error) for error in at_once(session, engine, switch_off, leave)] == [Conflict]
    assert len(roles(session, project)) == 2


def test_a_link_is_used_once_also_by_two_at_once(
    session: Session, engine: Engine, project: Project, admin: User
) -> None:
    token = accounts.create_link(session, created_by=admin.id, days=1, project_id=project.id, roles=["labeler"])
    bo, cy = factories.account(session, name="Bo"), factories.account(session, name="Cy")

    def use(user: User) -> Work:
        return lambda own: accounts.accept_link(own, token, own.get_one(User, user.id))

    refused = at_once(session, engine, use(bo), use(cy))
    assert [type(error) for error in refused] == [Gone]
    assert roles(session, project) == {"Ada": ["admin"], "Bo": ["labeler"]}


def test_a_member_who_uses_a_link_keeps_the_roles_they_have(session: Session, project: Project, admin: User) -> None:
    for given in (["labeler"], ["operator"]):
        token = accounts.create_link(session, created_by=admin.id, days=1, project_id=project.id, roles=given)
        accounts.accept_link(session, token, admin)
    assert roles(session, project) == {"Ada": ["labeler", "admin", "operator"]}


def test_a_link_is_for_one_kind_of_account_and_one_account(session: Session, project: Project, admin: User) -> None:
    what = {"created_by": admin.id, "days": 1, "project_id": project.id, "roles": ["labeler"]}
    judge = accounts.create_link(session, kind="ai_judge", **what)
    password = accounts.create_link(session, created_by=None, days=1, user_id=admin.id)
    bo = factories.account(session)
    for token in (judge, password):
        with pytest.raises(Conflict):
            accounts.accept_link(session, token, bo)
    accounts.redeem_link(session, judge, email="j@example.org", name="Judge", password=PASSWORD)
    assert roles(session, project)["Judge"] == ["labeler"]


@pytest.mark.parametrize("loses", ["role", "membership", "account"])
def test_links_into_a_project_end_with_the_right_of_whoever_made_them(
    session: Session, project: Project, admin: User, loses: str
) -> None:
    evil, other = factories.member(session, project, "admin", "labeler"), factories.project(session)
    factories.join(session, other, evil, "admin")
    factories.member(session, other, "admin")
    here, there = (
        accounts.create_link(session, created_by=evil.id, days=1, project_id=each.id, roles=["admin"])
        for each in (project, other)
    )
    session.flush()
    if loses == "role":
        service.set_roles(session, project, admin, evil.id, ["labeler"])
    elif loses == "membership":
        service.remove(session, project, admin, evil.id)
    else:
        accounts.set_account(session, admin, evil, is_admin=False, is_active=False)
    for dead in (here, there) if loses == "account" else (here,):
        with pytest.raises(Gone):
            accounts.open_link(session, dead)
    if loses != "account":
        assert accounts.open_link(session, there)
    # Not even the right given back brings it back.
    evil.is_active = True
    access.join(session, project.id, evil.id, ["admin"], admin.id)
    session.flush()
    with pytest.raises(Gone):
        accounts.open_link(session, here)


def test_a_link_made_while_its_maker_lost_the_role_is_dead(session: Session, project: Project, admin: User) -> None:
    token = accounts.create_link(session, created_by=admin.id, days=1, project_id=project.id, roles=["admin"])
    session.get_one(ProjectMember, (project.id, admin.id)).roles = ["labeler"]
    session.flush()
    with pytest.raises(Gone):
        accounts.open_link(session, token)


@pytest.mark.parametrize("way", ["roles", "removal"])
def test_whoever_labels_no_more_holds_nothing(session: Session, project: Project, admin: User, way: str) -> None:
    bo = factories.member(session, project, "labeler", "operator")
    other = factories.project(session)
    factories.join(session, other, bo, "labeler")
    rows = [factories.comparison(session, each) for each in (project, other)]
    kept = factories.comparison(session, project, labeler_id=bo.id)
    here, there = (factories.lease(session, row, labeler_id=bo.id) for row in rows)
    done = factories.judgment(session, factories.comparison(session, project), preference=1, labeler_id=bo.id)
    wish(session, project, labeler_id=bo.id, expires_at=func.now())
    group = labelers.add_group(session, project, admin, "Experts")
    labelers.add_members(session, project, admin, group.id, [bo.id])
    if way == "roles":
        service.set_roles(session, project, admin, bo.id, ["operator"])
    else:
        service.remove(session, project, admin, bo.id)
    session.expire_all()
    assert (here.state, there.state) == ("released", "live")
    assert session.get_one(Comparison, rows[0].id).lease_count == 0
    assert session.get_one(Comparison, kept.id).labeler_id is None
    assert [task.labeler_id for task in tasks(session)] == [None]
    assert session.scalars(select(LabelerGroupMember)).all() == []
    assert done.superseded_at is None
    # What they did is still told, and they get nothing new.
    assert labelers.find(session, project, bo.id).name == bo.name
    assert assigning.next_task(session, project, bo) is None
    assert desk.take(session, project, factories.member(session, project, "labeler"))


def test_roles_that_change_beside_labeling_leave_the_task_on_the_desk(
    session: Session, project: Project, admin: User
) -> None:
    bo = factories.member(session, project, "labeler")
    factories.comparison(session, project)
    task = desk.take(session, project, bo)
    service.set_roles(session, project, admin, bo.id, ["operator", "labeler"])
    desk.judge(session, project, bo, task)
    assert session.scalars(select(Lease.state)).all() == ["submitted"]


@pytest.mark.parametrize("first", ["given", "removed"])
@pytest.mark.parametrize("what", ["group", "comparison"])
def test_nothing_is_given_to_somebody_who_is_just_leaving(
    session: Session, engine: Engine, project: Project, admin: User, what: str, first: str
) -> None:
    bo = factories.member(session, project, "labeler")
    kept = factories.comparison(session, project)
    group = labelers.add_group(session, project, admin, "Experts")

    def give(own: Session) -> None:
        here, actor = own.get_one(Project, project.id), own.get_one(User, admin.id)
        if what == "group":
            labelers.add_members(own, here, actor, group.id, [bo.id])
        else:
            assignments.assign(own, here, actor, AssignForm(owner=f"labeler:{bo.id}"))

    def remove(own: Session) -> None:
        service.remove(own, own.get_one(Project, project.id), own.get_one(User, admin.id), bo.id)

    refused = at_once(session, engine, *((give, remove) if first == "given" else (remove, give)))
    assert [type(error) for error in refused] == ([] if first == "given" else [NotFound])
    session.expire_all()
    assert session.scalars(select(LabelerGroupMember)).all() == []
    assert session.get_one(Comparison, kept.id).labeler_id is None


def test_an_answer_that_comes_while_the_labeler_is_removed_is_taken_before_or_refused(
    session: Session, engine: Engine, project: Project, admin: User
) -> None:
    bo = factories.member(session, project, "labeler")
    factories.comparison(session, project)
    task = desk.take(session, project, bo)

    def remove(own: Session) -> None:
        service.remove(own, own.get_one(Project, project.id), own.get_one(User, admin.id), bo.id)

    def judge(own: Session) -> None:
        with pytest.raises(Forbidden, match="no longer a labeler"):
            desk.judge(own, own.get_one(Project, project.id), own.get_one(User, bo.id), task)
        raise Gone("as it should be")

    assert [str(error) for error in at_once(session, engine, remove, judge)] == ["as it should be"]


def test_the_first_administrator_joins_projects_without_members(
    session: Session, project: Project, admin: User
) -> None:
    alone = factories.project(session, name="Alone")
    first, second = (
        accounts.redeem_link(
            session,
            accounts.create_link(session, created_by=None, days=1, is_admin=True),
            email=f"{name}@example.org",
            name=name,
            password=PASSWORD,
        )
        for name in ("First", "Second")
    )
    assert (first.is_admin, second.is_admin) == (True, True)
    assert roles(session, alone) == {"First": ["labeler", "admin", "operator"]}
    assert roles(session, project) == {"Ada": ["admin"]}
