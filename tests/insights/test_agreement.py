"""Agreement of a project: which judgments count, whose they are, the page, its parts and its JSON."""

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import krippendorff
import numpy as np
import pytest
from bs4 import BeautifulSoup
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from app.cache import Cache, Computed
from app.domain.agreement_table import Table
from app.domain.bootstrap import Estimate
from app.insights import queries, routes, service, views
from app.models import Project, Ranking, User
from benchmarks import agreement as benchmark
from tests import factories

NAN = float("nan")
JSON = {"Accept": "application/json"}


@pytest.fixture
def project(session: Session) -> Project:
    return factories.project(session, review_threshold=0.6)


def judged(session: Session, project: Project, answers: dict[User, int], **values: Any) -> Any:
    """Add a comparison with these preferences by labeler; all labelers give `aspects=`."""
    said = {"aspects": values.pop("aspects", {})} | ({"created_at": at} if (at := values.pop("at", None)) else {})
    row = factories.comparison(session, project, overlap=10, **values)
    for labeler, preference in answers.items():
        factories.judgment(session, row, preference=preference, labeler_id=labeler.id, **said)
    return row


def of_slice(session: Session, project: Project, domain: str, n: int, agreeing: int, labelers: list[User]) -> None:
    """Add n comparisons of a domain; on `agreeing` of them, both labelers are on one side."""
    for i in range(n):
        prompt = factories.prompt(session, project, domain=domain)
        first = 1 if i % 2 else -1
        second = first if i < agreeing else -first
        judged(session, project, {labelers[0]: first, labelers[1]: second}, prompt=prompt)


def test_alpha_and_percent_of_a_project(session: Session, project: Project) -> None:
    rng = np.random.default_rng(7)
    labelers = [factories.user(session) for _ in range(4)]
    table = rng.integers(-4, 5, (4, 15)).astype(float)
    table[:, :6] = np.clip(table[0, :6] + rng.integers(0, 2, (4, 6)), -4, 4)  # some agreement
    table[rng.random(table.shape) < 0.3] = NAN
    for unit in table.T:
        said = {labeler: int(x) for labeler, x in zip(labelers, unit, strict=True) if not np.isnan(x)}
        judged(session, project, said)
    # None of these count: superseded, withdrawn, a hidden repeat, "cannot judge", another project's.
    row = judged(session, project, {labelers[0]: 1}, state="withdrawn")
    factories.judgment(session, row, preference=-3, labeler_id=labelers[1].id)
    judged(session, project, {labelers[0]: 1, labelers[1]: -1}, purpose="repeat", repeat_of_id=row.id)
    judged(session, factories.project(session), {labelers[0]: 1, labelers[1]: -1})
    row = judged(session, project, {})
    factories.judgment(session, row, preference=None, labeler_id=labelers[1].id)  # type: ignore[arg-type]
    old = factories.judgment(session, row, preference=3, labeler_id=labelers[0].id)
    old.superseded_at, old.superseded_for = datetime.now(UTC), "undone"
    session.flush()

    sides = np.sign(table)
    pairs = [[a == b for i, a in enumerate(u) for b in u[i + 1 :] if a == a and b == b] for u in sides.T]
    live = service.live(session, project.id)
    for whole in (live.figures, service.table(session, project.id).whole):
        assert whole.nominal_alpha.value == pytest.approx(
            krippendorff.alpha(reliability_data=sides, level_of_measurement="nominal"), abs=1e-9
        )
        assert whole.ordinal_alpha.value == pytest.approx(
            krippendorff.alpha(reliability_data=table, level_of_measurement="ordinal"), abs=1e-9
        )
        assert whole.percent.value == pytest.approx(np.mean([np.mean(equal) for equal in pairs if equal]))
        assert whole.judgments == np.isfinite(table).sum()
    assert live.preferences == {p: int((table == p).sum()) for p in range(-4, 5)}


def test_slices_aspects_rounds_and_weeks(session: Session, project: Project) -> None:
    ann, bob = factories.user(session), factories.user(session)
    aspects = [{"name": "style", "question": "Which is better written?"}]
    first = factories.rubric(session, project, version=1, aspects=aspects)
    second = factories.rubric(session, project, version=2, allow_tie=False, allow_both_bad=False)
    loop = factories.round_(session, project, number=7)
    law = factories.prompt(session, project, domain="law", difficulty="hard", safety_category="self-harm")
    chat = factories.prompt(session, project, domain="chat", split="heldout")
    monday, sunday = datetime(2026, 10, 5, tzinfo=UTC), datetime(2026, 10, 11, 23, 59, tzinfo=UTC)
    judged(session, project, {ann: 2, bob: 2}, prompt=law, rubric_id=first.id, at=monday, aspects={"style": 1})
    judged(session, project, {ann: -1, bob: -3}, prompt=law, rubric_id=first.id, at=sunday, aspects={"style": -1})
    judged(
        session, project, {ann: 1, bob: -1}, prompt=chat, rubric_id=second.id, round_id=loop.id, purpose="human_eval",
        at=datetime(2026, 10, 12, tzinfo=UTC),
    )  # fmt: skip
    found = service.table(session, project.id)
    assert {name: set(parts) for name, parts in found.slices.items()} == {
        "rubric": {"1", "2"},
        "domain": {"law", "chat"},
        "difficulty": {"hard", "easy"},
        "safety_category": {"self-harm"},
        "split": {"train", "heldout"},
        "purpose": {"train", "human_eval"},
        "round": {"7"},
    }
    law_figures, chat_figures = found.slices["domain"]["law"], found.slices["domain"]["chat"]
    assert (law_figures.percent.value, law_figures.nominal_alpha.value, law_figures.comparisons) == (1.0, 1.0, 2)
    assert chat_figures.percent.value == 0.0
    # Two answers to choose from under version 2: half of chance; three under version 1.
    assert found.slices["rubric"]["2"].gwet_ac1.value == pytest.approx((0 - 0.5) / (1 - 0.5))
    assert found.whole.gwet_ac1.value == pytest.approx((2 / 3 - 0.25) / (1 - 0.25))
    assert (found.aspects["style"].comparisons, found.aspects["style"].percent.value) == (2, 1.0)
    weeks = {(views.FIRST_MONDAY.toordinal() + 7 * week): part.comparisons for week, part in found.weeks.items()}
    assert weeks == {monday.toordinal(): 2, monday.toordinal() + 7: 1}
    ((pair,),) = (found.pairs,)
    assert pair.labelers == (ann.id, bob.id)
    assert pair.figures.figures.shared == 3


def test_a_comparison_that_loses_its_judgments_while_they_are_read_does_not_count(
    session: Session, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann, bob = factories.user(session), factories.user(session)
    for preference in (1, 2, -3):
        judged(session, project, {ann: preference, bob: preference})
    read = queries._tagged

    def meanwhile(*args: Any) -> Any:
        session.execute(
            text("UPDATE judgment SET superseded_at = now(), superseded_for = 'undone' WHERE preference = 2")
        )
        return read(*args)

    monkeypatch.setattr(queries, "_tagged", meanwhile)
    found = queries.judgments(session, project.id, service.PEOPLE, [])
    assert sorted(found.preference.tolist()) == [-3, -3, 1, 1]
    assert len(found.tag) == len(found.labeler) == len(found.week) == 4


def test_machines_count_only_when_asked_for(session: Session, project: Project) -> None:
    ann, file, robot, judge = (
        factories.user(session, kind=kind) for kind in ("person", "imported", "simulated", "ai_judge")
    )
    judged(session, project, {ann: 1, file: 1, robot: -1, judge: -2})
    expected = {
        service.PEOPLE: (2, 1.0),
        ("simulated", "ai_judge"): (2, 1.0),
        ("person", "simulated"): (2, 0.0),
        ("person", "imported", "simulated", "ai_judge"): (4, 1 / 3),
        ("ai_judge",): (1, None),
    }
    for kinds, (judgments, percent) in expected.items():
        live, table = service.live(session, project.id, kinds), service.table(session, project.id, kinds)
        assert (live.figures.judgments, live.figures.percent.value) == (judgments, percent)
        assert table.whole._replace(cohen_kappa=Estimate(None)) == live.figures
    assert live.judgments_by_kind == {"person": 1, "imported": 1, "simulated": 1, "ai_judge": 1}


def test_worst_slices_come_first_and_are_marked(session: Session, project: Project) -> None:
    labelers = [factories.user(session), factories.user(session)]
    of_slice(session, project, "chat", 60, 54, labelers)
    of_slice(session, project, "law", 40, 12, labelers)
    of_slice(session, project, "maths", 40, 34, labelers)
    of_slice(session, project, "tiny", 3, 0, labelers)
    table = service.table(session, project.id)
    shown = views.view(Computed(table, datetime.now(UTC), 0.1), names_of(session, table), 0.6, {})
    (section,) = (each for each in shown.sections if each.dimension == "domain")
    assert [(row.label, row.lower, row.under) for row in section.rows] == [
        ("law", True, True),
        ("maths", False, False),
        ("chat", False, False),
    ]
    assert (section.total, section.marked) == (3, 1)
    assert [row.label for row in section.few] == ["tiny"]  # three that all disagree may be luck
    assert [row.label for row in shown.loudest] == ["law"]
    assert not shown.whole_under
    assert shown.same == ["difficulty easy", "rubric version 1", "purpose train", "split train"]
    assert shown.pairs.total == shown.pairs_total == 1


def test_live_figures_know_the_same_scales_as_the_table(session: Session, project: Project) -> None:
    """AC1 depends on the number of possible answers; a version may be published and not used yet."""
    ann, bob = factories.user(session), factories.user(session)
    binary = factories.rubric(session, project, version=1, allow_tie=False, allow_both_bad=False)
    for preference in (1, -1, 1):
        judged(session, project, {ann: preference, bob: 1}, rubric_id=binary.id)
    factories.rubric(session, project, version=2, allow_tie=True)
    live, table = service.live(session, project.id), service.table(session, project.id)
    assert table.whole.gwet_ac1 == live.figures.gwet_ac1
    assert table.slices["rubric"]["1"].gwet_ac1.value < table.whole.gwet_ac1.value  # chance is a half of two answers


def test_rankings_have_their_intervals_from_the_table(session: Session, project: Project) -> None:
    ann, bob = factories.user(session), factories.user(session)
    rng = np.random.default_rng(0)
    for _ in range(12):
        prompt = factories.prompt(session, project)
        ranking = Ranking(project_id=project.id, prompt_id=prompt.id, size=3)
        session.add(ranking)
        session.flush()
        first, agrees = int(rng.choice([-1, 1])), rng.random() < 0.6
        for _ in range(3):
            judged(
                session, project, {ann: first, bob: first if agrees else -first}, prompt=prompt, ranking_id=ranking.id
            )
    live, table = service.live(session, project.id), service.table(session, project.id)
    assert live.figures.percent == Estimate(table.whole.percent.value)
    share = table.whole.percent.value
    assert table.whole.percent.error == pytest.approx(np.sqrt(share * (1 - share) / 12), rel=0.1)


def names_of(session: Session, table: Table) -> dict[int, tuple[str, str]]:
    return queries.labelers(session, views.labelers_of(table))


def test_where_everything_is_under_the_threshold_only_what_is_lower_still_is_marked(
    session: Session, project: Project
) -> None:
    labelers = [factories.user(session), factories.user(session)]
    of_slice(session, project, "law", 60, 24, labelers)
    of_slice(session, project, "maths", 40, 0, labelers)
    table = service.table(session, project.id)
    shown = views.view(Computed(table, datetime.now(UTC), 0.1), names_of(session, table), 0.6, {})
    assert shown.whole_under
    (section,) = (each for each in shown.sections if each.dimension == "domain")
    assert [(row.label, row.lower, row.under) for row in section.rows] == [
        ("maths", True, False),
        ("law", False, False),
    ]
    assert [row.label for row in shown.loudest] == ["maths"]


@pytest.fixture
def url(project: Project) -> str:
    return f"/projects/{project.slug}/agreement"


def test_the_page_and_its_json(session: Session, project: Project, url: str, sign_in: Callable[..., Any]) -> None:
    session.commit()
    admin = sign_in("admin")
    assert "No judgments yet" in admin.get(url).text
    empty = admin.get(url, headers=JSON).json()
    assert (empty["percent"], empty["judgments"], empty["slices"]) == (None, 0, {})
    judged(session, project, {factories.user(session, name="Ann"): 3, factories.user(session, name="Bob"): 3})
    session.commit()
    shown = admin.get(url).text
    assert "100.0%" in shown  # they agree, while alpha has no variation to go by
    assert "–" in shown
    assert "Ann and Bob" in " ".join(BeautifulSoup(shown, "html.parser").get_text(" ").split())
    assert "There are no slices to compare" in shown
    program = sign_in("operator").get(url, headers=JSON).json()
    assert program["percent"] == 1.0
    # Of a single comparison: Wilson's interval, 1 / (1 + 1.96^2) at its lower end.
    assert program["intervals"]["percent"] == [pytest.approx(0.2065, abs=1e-4), 1.0]
    assert program["nominal_alpha"] is None
    assert program["intervals"]["nominal_alpha"] is None
    assert (program["judgments"], program["shared"], program["preferences"]["3"]) == (2, 1, 2)
    assert program["slices"]["split=train"]["comparisons"] == 1
    assert [labeler["name"] for labeler in program["pairs"][0]["labelers"]] == ["Ann", "Bob"]
    assert sign_in("labeler").get(url).status_code == 403


def test_only_machines_have_judged(session: Session, project: Project, url: str, sign_in: Callable[..., Any]) -> None:
    robots = [factories.user(session, kind="simulated") for _ in range(2)]
    judged(session, project, dict.fromkeys(robots, 2))
    session.commit()
    admin = sign_in("admin")
    shown = admin.get(url).text
    assert "Only simulated labelers have judged here so far" in shown
    assert f'href="{url}?kind=simulated"' in shown
    assert "You see your own selection" in admin.get(f"{url}?kind=simulated").text
    assert admin.get(f"{url}?kind=simulated", headers=JSON).json()["labelers"] == ["simulated"]
    assert admin.get(f"{url}?kind=nobody").status_code == 422


def test_a_large_project_shows_live_figures_at_once_and_loads_the_rest(
    session: Session, project: Project, url: str, sign_in: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "AT_ONCE", 1)
    judged(session, project, {factories.user(session): 1, factories.user(session): -1})
    session.commit()
    admin = sign_in("admin")
    shown = admin.get(url).text
    assert "Comparing 2 judgments" in shown
    assert "Needs attention" not in shown
    assert f'hx-get="{url}/table?kind=person&amp;kind=imported" hx-trigger="load"' in shown
    part = admin.get(f"{url}/table?kind=person&kind=imported", headers={"HX-Request": "true"}).text
    assert "Needs attention" in part
    assert "<html" not in part
    assert "Needs attention" in admin.get(f"{url}?wait=true").text  # without JavaScript


def test_live_figures_as_a_part_of_their_own(
    session: Session, project: Project, url: str, sign_in: Callable[..., Any]
) -> None:
    judged(session, project, {factories.user(session): 1, factories.user(session): 1})
    session.commit()
    shown = sign_in("admin").get(f"{url}/live").text
    assert "100.0%" in shown
    assert "<html" not in shown
    assert sign_in("labeler").get(f"{url}/live").status_code == 403


def test_a_kind_of_slices_has_pages(
    session: Session, project: Project, url: str, sign_in: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views, "PAGE", 2)
    monkeypatch.setattr(views, "LEAST", 1)
    labelers = [factories.user(session), factories.user(session)]
    for n, domain in enumerate(("worst", "poor", "fair", "good", "best")):
        of_slice(session, project, domain, 4, n, labelers)
    session.commit()
    admin = sign_in("admin")
    pages = [admin.get(f"{url}/section?dimension=domain&number={number}").text for number in range(3)]
    for shown, domains in zip(pages, (("worst", "poor"), ("fair", "good"), ("best",)), strict=True):
        for domain in ("worst", "poor", "fair", "good", "best"):
            assert (f">{domain}<" in shown) == (domain in domains)
    assert ">fair<" in admin.get(f"{url}?dimension=domain&number=1&wait=true").text
    refused = admin.get(f"{url}/section?dimension=nothing", headers=JSON)
    assert (refused.status_code, refused.json()["error"]) == (404, "Agreement cannot be shown by “nothing”.")


def test_hostile_names_are_text(session: Session, project: Project, url: str, sign_in: Callable[..., Any]) -> None:
    labelers = [factories.user(session, name="<img src=x onerror=alert(1)>"), factories.user(session, name="Bob")]
    of_slice(session, project, "<script>alert(1)</script>", 3, 3, labelers)
    of_slice(session, project, "plain", 3, 3, labelers)
    session.commit()
    shown = sign_in("admin").get(url).text
    assert "<script>alert" not in shown
    assert "<img src=x" not in shown
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in shown


# --- tables that took long are kept ----------------------------------------------------------------------------------


def a_table(session: Session) -> Table:
    return service.table(session, 0)


def test_a_table_that_took_long_is_kept_for_a_while(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    table, calls, now = a_table(session), [], [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def compute(seconds: float) -> Table:
        calls.append(seconds)
        now[0] += seconds
        return table

    tables = Cache[Table]()
    tables.get("quick", lambda: compute(0.5))
    tables.get("quick", lambda: compute(0.5))
    assert calls == [0.5, 0.5]
    slow = tables.get("slow", lambda: compute(3.0))
    assert tables.get("slow", lambda: compute(3.0)) is slow
    assert tables.get("other", lambda: compute(3.0)) is not slow
    assert calls == [0.5, 0.5, 3.0, 3.0]
    monkeypatch.setattr(Cache, "KEPT_FOR", 0)
    assert tables.cached("slow") is None


def test_who_asks_meanwhile_waits_for_the_same_table(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cache, "KEPT_FOR", 10**6)
    table, tables, calls = a_table(session), Cache[Table](worth_keeping=0.0), []
    begun, go_on = threading.Event(), threading.Event()

    def compute() -> Table:
        calls.append(1)
        begun.set()
        assert go_on.wait(20)
        return table

    found: list[Computed[Table]] = []
    threads = [threading.Thread(target=lambda: found.append(tables.get("key", compute))) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert begun.wait(20)
    go_on.set()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert all(each is found[0] for each in found)


def test_the_benchmark_measures_the_whole_table(engine: Engine, session: Session) -> None:
    seconds = benchmark.measure(engine, 600)
    assert 0 < seconds < 60
    (project,) = session.query(Project).all()
    found = service.table(session, project.id)
    assert found.whole.judgments == 600
    assert len(found.slices["rubric"]) == 3
    assert len(found.aspects) == 2
    assert len(found.weeks) >= 26
    assert 0 < found.whole.nominal_alpha.value < 1
