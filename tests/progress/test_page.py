"""The Progress page: every figure against arithmetic, and its content without data, with little, and with much."""

import csv
import io
import math
from collections.abc import Callable

import pytest
from bs4 import BeautifulSoup, Tag
from sqlalchemy.orm import Session
from statsmodels.stats.proportion import proportion_confint

from app.models import Project
from app.progress import views
from app.rounds import outcomes
from tests import factories
from tests.conftest import SignedIn
from tests.progress.scenes import add_round, best_of, evaluation, judge

SignIn = Callable[..., SignedIn]


@pytest.fixture
def project(session: Session) -> Project:
    return factories.project(session)


def shown(client: SignedIn, project: Project, query: str = "") -> BeautifulSoup:
    answer = client.get(f"/projects/{project.slug}/progress{query}")
    assert answer.status_code == 200
    return BeautifulSoup(answer.text, "html.parser")


def answers(page: BeautifulSoup) -> dict[str, str]:
    """Return the verdict's questions and answers."""
    found = page.select_one(".answers-to")
    assert found is not None
    return {
        name.get_text(strip=True): " ".join(value.get_text().split())
        for name, value in zip(found.select("dt"), found.select("dd"), strict=True)
    }


def heading(page: BeautifulSoup) -> str:
    found = page.select_one("#verdict")
    assert found is not None
    return " ".join(found.get_text().split())


def rows_of(client: SignedIn, project: Project, name: str) -> list[dict[str, str]]:
    answer = client.get(f"/projects/{project.slug}/progress/files/{name}")
    assert answer.status_code == 200
    return list(csv.DictReader(io.StringIO(answer.text)))


def test_a_project_without_rounds_says_what_will_be_here(sign_in: SignIn, session: Session, project: Project) -> None:
    session.commit()
    client = sign_in("operator")
    assert "No round yet" in shown(client, project).get_text()
    assert client.get(f"/projects/{project.slug}/progress/files/frontier.svg").status_code == 404
    assert "<svg" in client.get(f"/projects/{project.slug}/progress/files/over-rounds.svg").text
    assert rows_of(client, project, "rounds.csv") == rows_of(client, project, "slices.csv") == []


def test_a_round_under_way_has_no_verdict(sign_in: SignIn, session: Session, project: Project) -> None:
    factories.round_(session, project, number=1, state="reward")
    session.commit()
    page = shown(sign_in("operator"), project)
    assert "No round has ended with a new policy yet. Round 1 is training its reward model." in " ".join(
        page.get_text().split()
    )
    assert page.select_one("#verdict") is None


def test_the_verdict_answers_five_questions(sign_in: SignIn, session: Session, project: Project) -> None:
    """40 prompts, 32 for the new policy: 19 of the 20 where its answer was longer, and 13 of the 20 shorter ones."""
    worse = {"domain=safety": evaluation(-0.5, 0.2, prompts=12)}
    round_ = add_round(session, project, 1, evaluation(0.42, longer=20.0), worse)
    people = [factories.user(session) for _ in range(3)]
    judge(session, project, round_, [1] * 19 + [-1], tokens=(60, 40), labelers=people, domain="facts")
    judge(session, project, round_, [1] * 13 + [-1] * 7, tokens=(30, 40), labelers=people, domain="chat")
    session.commit()
    page = shown(sign_in("operator"), project)
    assert heading(page) == "Round 1: better, by people"
    said = answers(page)
    assert said["Better than before?"].startswith("People prefer policy-1 to base in 80% of 40 prompts")
    assert "The reward model scores it 0.42 higher (0.22 to 0.62)." in said["Better than before?"]
    assert (
        said["Who judged, on how many prompts?"]
        == "3 people, 40 judgments on 40 complete prompts. The reward model: 24 prompts."
    )
    assert (
        "Responses are 50% longer: 60.0 tokens instead of 40.0 (difference +20.0, 19.9 to 20.1). look"
        in (said["Only shorter or longer?"])
    )
    assert (
        "People prefer it in 95% of 20 prompts in which its response is longer; in 65% of 20 prompts in which its"
        in (said["Only shorter or longer?"])
    )
    assert said["What got worse?"].startswith(
        "Monitors to look at: Longer answers. Slices: domain: safety (reward -0.50)."
    )
    assert said["May I adopt it?"].startswith("Yes: people prefer it.")
    assert "Look first at what got worse." in said["May I adopt it?"]


@pytest.mark.parametrize(
    ("difference", "judged", "title", "better", "may"),
    [
        (
            0.4,
            [],
            "better, by the reward model alone",
            "The reward model scores policy-1 0.40",
            "at least 10 judged prompts",
        ),
        (
            0.4,
            [1],
            "better, by the reward model alone",
            "100% of 1 prompt",
            "at least 10 judged prompts",
        ),
        (-0.4, [], "worse, by the reward model alone", "0.40 lower", "Better not: the reward model scores it lower."),
        (0.1, [], "not shown to be better, by the reward model alone", "0.10 higher", "People have not decided yet."),
        (
            0.4,
            [-1] * 30,
            "worse, by people",
            "improvement that people do not see",
            "Better not: people prefer the prev",
        ),
        (0.4, [1] * 7 + [-1] * 5, "not shown to be better, by people", "58% of 12 prompts", "more prompts will decide"),
        (0.4, [1, -1] * 8, "not shown to be better, by people", "people do not see", "would not decide."),
    ],
)
def test_the_verdict_says_whose_word_it_is(
    sign_in: SignIn,
    session: Session,
    project: Project,
    difference: float,
    judged: list[int],
    title: str,
    better: str,
    may: str,
) -> None:
    round_ = add_round(session, project, 1, evaluation(difference))
    judge(session, project, round_, judged)
    session.commit()
    page = shown(sign_in("operator"), project)
    assert heading(page) == f"Round 1: {title}"
    said = answers(page)
    assert better in said["Better than before?"]
    assert may in said["May I adopt it?"]
    sees_alone = title.endswith("by people") and sum(judged) <= 0
    assert ("sees an improvement that people do not see" in said["Better than before?"]) == sees_alone
    assert ("Nobody has judged it yet." in said["Who judged, on how many prompts?"]) == (not judged)


def test_the_projects_own_policy_and_a_busy_project_say_so(sign_in: SignIn, session: Session, project: Project) -> None:
    round_ = add_round(session, project, 1, evaluation(0.4))
    project.policy_id = round_.policy_after_id
    session.commit()
    client = sign_in("operator")
    assert answers(shown(client, project))["May I adopt it?"] == "It is the project's policy."
    project.policy_id = round_.policy_before_id
    factories.round_(session, project, number=2, state="policy", policy_before_id=project.policy_id)
    session.commit()
    said = answers(shown(client, project))["May I adopt it?"]
    assert said == "Not now: a round is under way. Round 2 is training its policy."


def test_simulated_labelers_are_not_called_people(sign_in: SignIn, session: Session, project: Project) -> None:
    round_ = add_round(session, project, 1, evaluation(0.4))
    judge(session, project, round_, [1] * 3, labelers=[factories.user(session, kind="simulated")])
    judge(session, project, round_, [1], labelers=[factories.user(session)])
    judge(session, project, round_, [1], labelers=[factories.user(session, kind="ai_judge")])  # does not count
    session.commit()
    said = answers(shown(sign_in("operator"), project))["Who judged, on how many prompts?"]
    assert said.startswith("1 person and 1 simulated labeler, 4 judgments on 4 complete prompts.")
    alone = add_round(session, project, 2, evaluation(0.4))
    judge(session, project, alone, [1] * 30, labelers=[factories.user(session, kind="simulated")])
    session.commit()
    page = shown(sign_in("operator"), project)
    assert heading(page) == "Round 2: better, by simulated labelers"
    assert answers(page)["Better than before?"].startswith("Simulated labelers prefer policy-2")
    assert answers(page)["May I adopt it?"].startswith("Yes: simulated labelers prefer it.")


def test_slices_with_too_few_judgments_say_so(sign_in: SignIn, session: Session, project: Project) -> None:
    """4 prompts are too few, whatever people said. 5 have a share, and 30 have a share clearly above one half."""
    round_ = add_round(session, project, 1, evaluation(0.4))
    judge(session, project, round_, [1] * 4, domain="four")
    judge(session, project, round_, [1, 1, 1, -1, -1], domain="five")
    judge(session, project, round_, [1] * 24 + [-1] * 6, domain="thirty")
    judge(session, project, round_, [-1] * 20, domain="worse")
    session.commit()
    client = sign_in("operator")
    table = shown(client, project).select_one("table.heat")
    assert table is not None
    cells: dict[str, Tag] = {str(row.th.get_text(strip=True)): row.td for row in table.select("tbody tr")}  # type: ignore[union-attr, misc]
    said = {name: (" ".join(cell.get_text().split()), cell["class"][1]) for name, cell in cells.items()}
    assert said["domain: four"] == ("too few 4", "cell-none")
    assert said["domain: five"] == ("60% 5", "cell-up")
    assert said["domain: thirty"] == ("80% 30", "cell-up-sure")
    assert said["domain: worse"] == ("0% 20", "cell-down-sure")
    assert "100%" not in " ".join(table.get_text().split())
    found = {row["slice"]: row for row in rows_of(client, project, "slices.csv")}
    low, high = proportion_confint(24, 30, method="wilson")
    assert [float(found["domain=thirty"][f"win_rate{end}"]) for end in ("", "_low", "_high")] == [
        pytest.approx(0.8),
        pytest.approx(low),
        pytest.approx(high),
    ]
    assert found["domain=four"]["win_rate_prompts"] == "4"


def test_slices_can_show_the_reward_models_figures(sign_in: SignIn, session: Session, project: Project) -> None:
    few = {name: value for name, value in evaluation(2.0, prompts=1).items() if not name.endswith(("_low", "_high"))}
    slices = {
        "domain=few": few,
        "domain=up": evaluation(0.3),
        "domain=down": evaluation(-0.25),
        "domain=even": evaluation(-0.1),
    }
    add_round(session, project, 1, evaluation(0.4), slices)
    session.commit()
    page = shown(sign_in("operator"), project)  # nobody judged: the reward model's come first
    said = {
        row.th.get_text(strip=True): (" ".join(row.td.get_text().split()), row.td["class"][1])  # type: ignore[union-attr]
        for row in page.select("table.heat tbody tr")
    }
    assert said == {
        "all prompts": ("+0.40 24", "cell-up-sure"),
        "domain: up": ("+0.30 24", "cell-up-sure"),
        "domain: down": ("−0.25 24", "cell-down-sure"),
        "domain: even": ("−0.10 24", "cell-down"),
        "domain: few": ("too few 1", "cell-none"),
    }
    # What got worse comes first, what nothing can be said of last.
    assert list(said) == ["all prompts", "domain: down", "domain: even", "domain: up", "domain: few"]


def test_the_frontier_has_best_of_n_as_its_yardstick(sign_in: SignIn, session: Session, project: Project) -> None:
    """Best-of-4 of the reference gained 1.0 at ln 4 - 3/4 nats. A policy at 0.25 nats lies between n = 1 and 2."""
    two = math.log(2) - 1 / 2
    measured = best_of((1, 0.2), (2, 0.7), (4, 1.2), gain=0.9)
    add_round(session, project, 1, evaluation(0.4) | measured | {"eval_objective/kl_k3": 0.1})
    add_round(session, project, 2, evaluation(0.4) | measured | {"eval_objective/kl_k3": 9.0})
    add_round(session, project, 3, evaluation(0.4))  # did not measure it
    session.commit()
    client = sign_in("operator")
    points = {
        (row["series"], row["√KL to the reference, √nats a response"]): row
        for row in rows_of(client, project, "frontier.csv")
    }
    best = sorted((float(x), float(row["value"])) for (name, x), row in points.items() if name.startswith("best-of-n"))
    assert best == [
        (0.0, 0.0),
        (pytest.approx(math.sqrt(two)), pytest.approx(0.5)),
        (pytest.approx(math.sqrt(math.log(4) - 3 / 4)), pytest.approx(1.0)),
    ]
    policies = [
        (float(x), float(row["value"]), float(row["low"]))
        for (name, x), row in points.items()
        if name == "policies by round"
    ]
    assert policies == [(pytest.approx(math.sqrt(0.1)), 0.9, pytest.approx(0.8)), (3.0, 0.9, pytest.approx(0.8))]
    page = shown(client, project)
    text = page.select_one("[aria-labelledby=frontier]")
    assert text is not None
    assert "best-of-n of the reference, n ≤ 4" in text.get_text()
    assert "The line is drawn by round 2's reward model" in text.get_text()
    assert "n = 4" in text.get_text()
    rows = [[" ".join(cell.get_text().split()) for cell in row.select("th, td")] for row in text.select("tbody tr")]
    between = 0.5 * math.sqrt(0.1) / math.sqrt(two)
    assert rows == [
        ["Round 2", "9.00", "+0.90 (0.80 to 1.00)", "beyond n = 4", "24"],
        ["Round 1", "0.10", "+0.90 (0.80 to 1.00)", f"+{between:.2f}", "24"],
    ]


def test_rewards_kl_and_win_rates_stand_on_one_axis(sign_in: SignIn, session: Session, project: Project) -> None:
    first = add_round(session, project, 1, evaluation(0.4))
    second = add_round(session, project, 2, evaluation(-0.1) | {"eval_objective/kl_k3": 2.5})
    judge(session, project, first, [1] * 9 + [-1] * 3)
    judge(session, project, second, [1] * 4)  # too few to draw
    session.commit()
    found = outcomes.progress(session, project)
    assert outcomes.progress(session, project, slices=False) == (found.rows, {})  # what files over all prompts read
    assert found.slices
    chart = views.over_rounds(found.rows)
    reward, kl, won = chart.panels
    assert [(each.label, each.points) for each in reward.series] == [
        ("previous policy", [(1, 0.5), (2, 0.5)]),
        ("new policy", [(1, 0.9), (2, 0.4)]),
    ]
    assert kl.series[0].points == [(1, 4.0), (2, 2.5)]
    assert won.series[0].points == [(1, 0.75)]
    ((low, high),) = won.series[0].reach  # type: ignore[misc]
    row = rows_of(sign_in("admin"), project, "rounds.csv")[0]
    assert (float(row["win_rate_low"]), float(row["win_rate_high"])) == (low, high)
    assert (row["verdict"], row["verdict_by"], row["win_rate"], row["reward_accuracy"]) == (
        "not shown",
        "people",
        "0.75",
        "0.7",
    )


def test_a_figure_that_is_no_number_is_left_out(sign_in: SignIn, session: Session, project: Project) -> None:
    add_round(session, project, 1, evaluation(math.nan) | {"eval_objective/kl_k3": math.inf}, accuracy=math.nan)
    session.commit()
    page = shown(sign_in("operator"), project)
    assert heading(page) == "Round 1: no verdict"
    assert "nan" not in page.get_text().lower()
    assert "nan" not in str(page.select_one(".drawing"))


def test_far_too_many_rounds_and_slices_are_cut_and_the_files_have_all(
    sign_in: SignIn, session: Session, project: Project
) -> None:
    short = {name: value for name, value in evaluation(0.4).items() if "scores" in name or "prompts" in name}
    for number in range(1, 16):
        add_round(session, project, number, short, {f"domain=d{n}": short for n in range(50)} if number > 14 else None)
    session.commit()
    client = sign_in("operator")
    page = shown(client, project)
    assert len(page.select("table.heat thead th")) == 1 + views.SHOWN_ROUNDS
    assert len(page.select("table.heat tbody tr")) == views.SHOWN_SLICES
    assert "The page shows the newest 12 rounds and at most 40 slices; the files have all." in " ".join(
        page.get_text().split()
    )
    assert len({row["slice"] for row in rows_of(client, project, "slices.csv")}) == 51
    drawn = client.get(f"/projects/{project.slug}/progress/files/slices.svg").text
    assert (drawn.count("domain: d"), drawn.count(">Round ")) == (50, 15)
