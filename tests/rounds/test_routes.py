"""Rounds over HTTP: who may do what, and the content of pages and JSON."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bs4 import BeautifulSoup
from fastapi import FastAPI
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from app import cache
from app.cache import Cache
from app.domain.strengths import STRENGTHS
from app.models import Metric, Project, Round, Run, Snapshot
from app.rounds import queries, service
from app.rounds.service import store_samples
from app.simulation.browser import Form
from tests import factories
from tests.conftest import SignedIn
from tests.rounds.loop import decided, jobs, last_run, make_project, new_samples


@pytest.fixture
def project(session: Session) -> Project:
    project = make_project(session)
    session.commit()
    return project


SignIn = Callable[..., SignedIn]
FORM = {"algorithm": "dpo", "learning_rate": "1e-4", "epochs": "2", "beta": "0.2"}


def start(client: SignedIn, project: Project, **form: str) -> Any:
    return client.post(f"/projects/{project.slug}/rounds", FORM | form)


def the_round(session: Session) -> Round:
    session.expire_all()
    return session.scalars(select(Round)).one()


def test_an_operator_starts_a_round(session: Session, sign_in: SignIn, project: Project) -> None:
    client = sign_in("operator")
    page = client.get(f"/projects/{project.slug}/rounds/new?algorithm=ppo")
    assert page.status_code == 200
    assert 'name="episodes"' in page.text
    assert 'name="beta"' not in page.text
    answer = start(client, project)
    assert (answer.status_code, answer.headers["location"]) == (303, f"/projects/{project.slug}/rounds/1")
    round_ = the_round(session)
    assert (round_.config["learning_rate"], round_.config["epochs"], round_.config["beta"]) == (1e-4, 2, 0.2)
    assert round_.config["samples_per_prompt"] == 4
    assert len(jobs(session)) == 1
    shown = client.get(f"/projects/{project.slug}/rounds/1")
    assert "waiting for a worker" in shown.text
    second = start(client, project)
    assert second.status_code == 409
    assert "Round 1 is still freezing" in second.text


@pytest.mark.parametrize("strength", [None, "strong"])
def test_a_program_sends_the_form_as_it_stands(
    sign_in: SignIn, session: Session, project: Project, strength: str | None
) -> None:
    """Do what `prefloop simulate` does, with or without `--set strength=strong`."""
    client = sign_in("operator")
    page = BeautifulSoup(client.get(f"/projects/{project.slug}/rounds/new").text, "html.parser")
    form = Form(page.select_one("#new-round") or page, "", page)
    assert form.choices["strength"] == ["gentle", "balanced", "strong"]
    values = form.values | ({"strength": strength} if strength else {})
    assert client.post(form.action, values).status_code == 303
    config = the_round(session).config
    assert (config["algorithm"], config["strength"]) == ("on_policy_dpo", strength or "balanced")
    assert config["kl_budget"] == STRENGTHS[strength or "balanced"].kl_budget


@pytest.mark.parametrize(
    "wrong", [{"algorithm": "magic"}, {"beta": "0"}, {"epochs": "many"}, {"learning_rate": "-1"}, {"prompts": "0"}]
)
def test_a_wrong_setting_is_refused_by_name(sign_in: SignIn, session: Session, project: Project, wrong: Any) -> None:
    answer = start(sign_in("operator"), project, **wrong)
    assert answer.status_code == 422
    assert next(iter(wrong)) in answer.text
    assert session.scalars(select(Round)).all() == []


@pytest.mark.parametrize("roles", [("labeler",), ("admin",), ()])
def test_only_operators_start_cancel_and_retry(
    sign_in: SignIn, session: Session, project: Project, roles: tuple[str, ...]
) -> None:
    start(sign_in("operator"), project)
    client = sign_in(*roles)
    refused = 403 if roles else 401
    for path in ("rounds", "rounds/1/cancel", "rounds/1/retry", "sampling"):
        assert client.post(f"/projects/{project.slug}/{path}", FORM).status_code == refused
    assert the_round(session).state == "freezing"
    seen = client.get(f"/projects/{project.slug}/rounds/1", headers={"Accept": "application/json"})
    assert seen.status_code == (200 if roles == ("admin",) else refused)


def test_a_form_without_our_token_is_refused(sign_in: SignIn, session: Session, project: Project) -> None:
    assert sign_in("operator").post(f"/projects/{project.slug}/rounds", FORM, csrf=False).status_code == 403
    assert session.scalars(select(Round)).all() == []


def test_a_refused_form_comes_back_as_it_was_typed(sign_in: SignIn, session: Session, project: Project) -> None:
    client = sign_in("operator")
    answer = start(client, project, beta="-3", epochs="4", kl_stop="", nll_weight="0.25", lora="false")
    assert answer.status_code == 422
    soup = BeautifulSoup(answer.text, "html.parser")
    beta = soup.select_one("#beta")
    assert beta is not None
    assert (beta["value"], beta["aria-invalid"]) == ("-3", "true")
    assert "beta-error" in beta["aria-describedby"]
    reason = soup.select_one("#beta-error")
    assert reason is not None
    assert "greater than 0" in reason.text
    assert soup.select_one("#epochs")["value"] == "4"  # type: ignore[index]
    assert soup.select_one("#nll_weight")["value"] == "0.25"  # type: ignore[index]
    assert soup.select_one("#lora option[selected]")["value"] == "false"  # type: ignore[index]
    assert soup.select_one("button.primary[disabled]") is None
    wrong, program = FORM | {"beta": "0"}, {"Accept": "application/json"}
    refused = client.post(f"/projects/{project.slug}/rounds", wrong, headers=program)
    assert (refused.status_code, "beta" in refused.json()["error"]) == (422, True)


def test_a_round_that_cannot_start_leaves_nothing_and_keeps_the_form(
    sign_in: SignIn, session: Session, project: Project
) -> None:
    answer = start(sign_in("operator"), project, algorithm="sft", epochs="3")
    assert answer.status_code == 422
    assert "Fine-tuning needs 20 approved demonstrations on train prompts; there are 0." in answer.text
    assert BeautifulSoup(answer.text, "html.parser").select_one("#epochs")["value"] == "3"  # type: ignore[index]
    assert session.scalars(select(Snapshot)).all() == []


def test_a_learning_rate_that_nobody_typed_follows_lora(sign_in: SignIn, session: Session, project: Project) -> None:
    client = sign_in("operator")
    soup = BeautifulSoup(client.get(f"/projects/{project.slug}/rounds/new?algorithm=dpo").text, "html.parser")
    for name in ("learning_rate", "reward_learning_rate"):
        control = soup.select_one(f"#{name}")
        assert control is not None
        assert (control["value"], control.has_attr("required")) == ("", False)
    assert "0.0006 with LoRA, 0.00006 for full weights" in soup.select_one("#learning_rate-hint").text  # type: ignore[union-attr]
    typed = {"learning_rate": "", "reward_learning_rate": "0.5", "lora": "false", "reward_lora": "false"}
    assert start(client, project, **typed).status_code == 303
    config = session.scalars(select(Round.config)).one()
    assert (config["learning_rate"], config["reward_learning_rate"]) == (6e-5, 0.5)


def test_a_beta_that_nobody_typed_follows_the_loss(sign_in: SignIn, session: Session, project: Project) -> None:
    client = sign_in("operator")
    soup = BeautifulSoup(client.get(f"/projects/{project.slug}/rounds/new?algorithm=dpo").text, "html.parser")
    beta = soup.select_one("#beta")
    assert beta is not None
    assert (beta["value"], beta.has_attr("required")) == ("", False)
    assert "empty: 0.1, with simpo 2" in soup.select_one("#beta-hint").text  # type: ignore[union-attr]
    assert start(client, project, loss="simpo", beta="").status_code == 303
    assert session.scalars(select(Round.config["beta"])).one() == 2


def test_the_form_begins_with_the_rank_that_the_policy_has(sign_in: SignIn, session: Session, project: Project) -> None:
    run = factories.run(session, project, spec={"lora": {"rank": 24, "alpha": 48}})
    project.policy_id = factories.model(session, project, adapter="models/run-1", run_id=run.id).id
    session.commit()
    client = sign_in("operator")
    soup = BeautifulSoup(client.get(f"/projects/{project.slug}/rounds/new").text, "html.parser")
    assert soup.select_one("#lora_rank")["value"] == "24"  # type: ignore[index]
    refused = start(client, project, lora_rank="8")
    assert refused.status_code == 422
    assert "LoRA rank 24; rank 8 cannot hold what it has learned" in refused.text


def test_a_project_that_samples_one_response_can_start_rounds(
    sign_in: SignIn, session: Session, project: Project
) -> None:
    project.generation = project.generation | {"samples_per_prompt": 1}
    session.commit()
    client = sign_in("operator")
    answer = client.get(f"/projects/{project.slug}/rounds/new")
    assert answer.status_code == 200
    soup = BeautifulSoup(answer.text, "html.parser")
    assert soup.select_one("#samples_per_prompt")["value"] == "2"  # type: ignore[index]
    assert start(client, project, samples_per_prompt="1").status_code == 422


def test_without_a_model_there_is_no_estimate(sign_in: SignIn, session: Session, project: Project) -> None:
    project.policy_id = None
    session.commit()
    shown = BeautifulSoup(sign_in("operator").get(f"/projects/{project.slug}/rounds/new").text, "html.parser")
    assert "no model yet" in shown.select_one("#estimate").text  # type: ignore[union-attr]


def test_the_preview_follows_the_settings(sign_in: SignIn, session: Session, project: Project) -> None:
    labelers = [factories.user(session).id]
    for _ in range(10):
        decided(session, project, factories.prompt(session, project), labelers, preferences=(1,))
    session.commit()
    client = sign_in("operator")
    base = f"/projects/{project.slug}/rounds/preview"

    def shown(**query: str) -> str | None:
        answer = client.get(base, params=FORM | query)
        assert answer.status_code == 200
        return BeautifulSoup(answer.text, "html.parser").select_one(".stat-value").text  # type: ignore[union-attr]

    assert shown() == "30"
    assert shown(train_limit="25") == "25"
    assert client.get(base, params=FORM | {"train_limit": "many"}).status_code == 204
    assert sign_in("admin").get(base, params=FORM).status_code == 403


def test_cancel_retry_and_their_errors(sign_in: SignIn, session: Session, project: Project) -> None:
    client = sign_in("operator")
    base = f"/projects/{project.slug}/rounds/1"
    assert client.post(f"{base}/cancel").status_code == 404
    start(client, project)
    assert client.post(f"{base}/retry").status_code == 409
    round_ = the_round(session)
    service.run_started(session, last_run(session, round_))
    service.run_failed(session, last_run(session, round_), "The disk is full. Free some space.")
    session.commit()
    page = client.get(base).text
    assert "The disk is full. Free some space." in page
    assert "Retry the stage that failed" in page
    assert client.post(f"{base}/retry").status_code == 303
    assert the_round(session).state == "freezing"
    service.run_failed(session, last_run(session, round_), "The disk is full.")
    session.commit()
    newer = start(client, project).headers["location"]
    assert "Retry the stage that failed" not in client.get(base).text  # it would be refused
    assert client.post(f"{base}/retry").status_code == 409
    assert client.post(f"{newer}/cancel").status_code == 303
    session.expire_all()
    assert [round_.state for round_ in queries.rounds(session, project.id)] == ["cancelled", "failed"]
    assert client.post(f"{newer}/cancel").status_code == 409
    stages = client.get(f"{newer}/status").json()["stages"]
    assert [stage["state"] for stage in stages] == ["cancelled", *["skipped"] * 4]
    # A new form begins with its settings.
    again = BeautifulSoup(client.get(f"/projects/{project.slug}/rounds/new?like=2").text, "html.parser")
    config = queries.rounds(session, project.id)[0].config
    chosen = {each["name"]: each["value"] for each in again.select("#new-round input[type=number]")}
    assert {name: float(value) for name, value in chosen.items() if value} == {
        name: float(config[name]) for name in chosen if config[name] is not None
    }
    assert client.get(f"/projects/{project.slug}/rounds/new?like=99").status_code == 404


def test_a_failed_rounds_checkpoints_can_be_discarded(
    app: FastAPI, sign_in: SignIn, session: Session, project: Project
) -> None:
    client = sign_in("operator")
    page = start(client, project).headers["location"]
    round_ = session.scalars(select(Round)).one()
    run = last_run(session, round_)
    with app.state.store.folder(f"{service.checkpoints_of(run.id)}/step-00000001") as folder:
        (folder / "model.safetensors").write_bytes(bytes(2_500_000))
    refused = client.post(f"{page}/checkpoints/discard")
    assert refused.status_code == 409
    assert app.state.store.exists(service.checkpoints_of(run.id))
    service.run_started(session, run)
    service.run_failed(session, run, "broken")
    session.commit()
    assert "Checkpoints of 2.5 MB are kept" in client.get(page).text
    assert "Discard" not in sign_in("admin").get(page).text
    assert sign_in("admin").post(f"{page}/checkpoints/discard").status_code == 403
    assert client.post(f"{page}/checkpoints/discard").status_code == 303
    assert not app.state.store.exists(service.checkpoints_of(run.id))
    assert "Checkpoints of" not in client.get(page).text
    assert client.post(f"{page}/retry").status_code == 303


def test_the_status_is_json_for_programs(sign_in: SignIn, session: Session, project: Project) -> None:
    client = sign_in("operator")
    start(client, project)
    base = f"/projects/{project.slug}/rounds/1"
    status = client.get(f"{base}/status").json()
    assert status == client.get(base, headers={"Accept": "application/json"}).json()
    assert (status["state"], status["finished"], status["error"]) == ("freezing", False, None)
    assert [stage["state"] for stage in status["stages"]] == ["queued", "waiting", "waiting", "waiting", "waiting"]
    assert (status["stages"][0]["label"], status["stages"][0]["note"]) == ("Snapshot", "waiting for a worker")
    for page in ("", "/rounds", "/progress", "/models"):
        answer = client.get(f"/projects/{project.slug}{page}")
        assert (answer.status_code, "freezing" in answer.text) == (200, page in ("", "/rounds", "/progress"))

    run = session.scalars(select(Run)).one()
    service.run_started(session, run)
    run.started_at = datetime.now(UTC) - timedelta(minutes=2)
    run.progress_done, run.progress_total, run.progress_message = 1200, 40_000, "writing comparisons"
    session.commit()
    assert client.get(f"{base}/status").json()["log"] == ""
    note = "1,200 of 40,000 writing comparisons, 2 minutes so far"
    assert client.get(f"{base}/status").json()["stages"][0]["note"] == note
    assert note in client.get(base).text
    run.seconds_left, run.tokens_per_second, run.device, run.log = 312.0, 1234.5, "NVIDIA H200", "line 1\nline <2>"
    session.commit()
    said = client.get(f"{base}/status").json()
    note += ", about 5 minutes left. 1,234 tokens a second, NVIDIA H200"
    assert (said["stages"][0]["note"], said["log"]) == (note, "line 1\nline <2>")
    page = BeautifulSoup(client.get(base).text, "html.parser")
    log = page.select_one("#run-log:not([hidden]) pre")
    assert log is not None
    assert (log.text, note in page.text) == ("line 1\nline <2>", True)


def test_a_round_that_waits_for_a_worker_says_so(sign_in: SignIn, session: Session, project: Project) -> None:
    client = sign_in("operator")
    start(client, project)
    base = f"/projects/{project.slug}/rounds/1"

    def is_said() -> bool:
        said = BeautifulSoup(client.get(base).text, "html.parser").select_one("#no-worker")
        assert said is not None
        assert said.has_attr("hidden") == client.get(f"{base}/metrics").json()["worker"]
        return not said.has_attr("hidden")

    assert is_said()
    session.execute(text("INSERT INTO procrastinate_workers (last_heartbeat) VALUES (now())"))
    session.commit()
    assert not is_said()
    session.execute(text("UPDATE procrastinate_workers SET last_heartbeat = now() - interval '16 s'"))  # it died
    session.commit()
    assert is_said()


def test_what_a_stage_left_out_is_said(sign_in: SignIn, session: Session, project: Project) -> None:
    client = sign_in("operator")
    start(client, project)
    run = session.scalars(select(Run)).one()
    run.result = {"dropped": ["3 comparisons have weight 0: 4, 9, 12"], "notes": ["The tokenizer had no pad."]}
    session.commit()
    page = BeautifulSoup(client.get(f"/projects/{project.slug}/rounds/1").text, "html.parser")
    said = [each.text for each in page.select("#round-facts section[aria-labelledby=remarks] li")]
    assert said == ["Snapshot: 3 comparisons have weight 0: 4, 9, 12", "Snapshot: The tokenizer had no pad."]


def test_slices_of_ppo_stand_beside_those_of_its_evaluation(
    sign_in: SignIn, session: Session, project: Project
) -> None:
    client = sign_in("operator")
    round_ = factories.round_(session, project, number=7, algorithm="ppo", state="policy", config={})
    run = factories.run(session, project, "ppo", round_id=round_.id, state="running")
    said = {("objective/scores", 1): 9.0, ("objective/scores", 2): 0.25, ("objective/kl", 2): 3.5}
    for (name, step), value in said.items():
        session.add(Metric(run_id=run.id, name=name, slice="domain=safety", step=step, value=value))
    session.commit()
    page = BeautifulSoup(client.get(f"/projects/{project.slug}/rounds/7").text, "html.parser")
    cells = page.select("[aria-labelledby=by-slice] tbody tr td")
    assert [cell.text.strip() for cell in cells] == ["–", "–", "–", "–", "–", "0.25", "3.50"]


def test_metrics_come_in_pieces(sign_in: SignIn, session: Session, project: Project) -> None:
    client = sign_in("operator")
    start(client, project)
    run = session.scalars(select(Run)).one()
    url = f"/projects/{project.slug}/rounds/1/metrics"

    def record(step: int, **values: float) -> None:
        session.add_all(Metric(run_id=run.id, name=name, step=step, value=value) for name, value in values.items())
        session.commit()

    assert client.get(url).json()["metrics"] == []
    record(1, loss=0.7)
    record(2, loss=0.6, accuracy=0.5)
    session.add(Metric(run_id=run.id, name="loss", slice="domain=x", step=2, value=9.0))
    session.commit()
    first = client.get(url).json()
    assert [(m["kind"], m["name"], m["step"], m["value"]) for m in first["metrics"]] == [
        ("freeze", "loss", 1, 0.7),
        ("freeze", "accuracy", 2, 0.5),
        ("freeze", "loss", 2, 0.6),
    ]
    record(2, eval_loss=float("nan"))
    record(3, loss=0.5)
    then = client.get(f"{url}?after={first['cursor']}").json()
    assert [(m["name"], m["step"], m["value"]) for m in then["metrics"]] == [
        ("accuracy", 2, 0.5),
        ("eval_loss", 2, None),
        ("loss", 2, 0.6),
        ("loss", 3, 0.5),
    ]
    assert client.get(f"{url}?after=nonsense.-1").json()["metrics"][0]["step"] == 1


def test_samples_can_be_read_and_downloaded(sign_in: SignIn, session: Session, project: Project) -> None:
    client = sign_in("operator")
    prompts = {split: factories.prompt(session, project, f"{split}?", split=split) for split in ("train", "heldout")}
    assert client.post(f"/projects/{project.slug}/sampling").status_code == 303
    run = session.scalars(select(Run)).one()
    service.run_started(session, run)
    for prompt in prompts.values():
        store_samples(session, run, new_samples(prompt.id, ["<b>one</b>", "two"]))
    session.commit()
    page = client.get(f"/projects/{project.slug}/samples?split=heldout").text
    assert "heldout?" in page
    assert "train?" not in page
    assert "<b>one</b>" not in page
    # Side by side: the newest response of each policy.
    other = factories.model(session, project, name="policy-1")
    for said in ("three", "four"):
        factories.completion(session, prompts["train"], said, run_id=run.id, model_version_id=other.id)
    session.commit()
    page = BeautifulSoup(client.get(f"/projects/{project.slug}/samples").text, "html.parser")
    cards = [[each.get_text(" ", strip=True) for each in card.select(".sample")] for card in page.select("main .card")]
    assert [[text.split()[0] for text in card] for card in cards] == [["base", "policy-1"], ["base"]]
    assert cards[0][1].endswith("four")
    after = client.get(f"/projects/{project.slug}/samples?after={prompts['train'].id}").text
    assert ("train?" in after, "heldout?" in after) == (False, True)
    lines = client.get(f"/projects/{project.slug}/samples.jsonl?split=heldout").text.splitlines()
    assert [json.loads(line)["text"] for line in lines] == ["<b>one</b>", "two"]
    assert json.loads(lines[0])["model"] == "base"
    assert json.loads(lines[0])["prompt"] == [{"role": "user", "content": "heldout?"}]
    assert len(client.get(f"/projects/{project.slug}/samples.jsonl").text.splitlines()) == 6
    assert client.get(f"/projects/{project.slug}/samples.jsonl?split=secret").status_code == 422
    assert sign_in("labeler").get(f"/projects/{project.slug}/samples.jsonl").status_code == 403


def test_every_page_stands_in_an_empty_project(sign_in: SignIn, session: Session) -> None:
    project = factories.project(session)
    session.commit()
    client = sign_in("operator", "admin")
    for path in ("rounds", "rounds/new", "progress", "progress/compare", "samples"):
        assert client.get(f"/projects/{project.slug}/{path}").status_code == 200, path
    for path in ("rounds/7", "rounds/7/metrics", "rounds/7/samples", "rounds/99999999999999999999"):
        assert client.get(f"/projects/{project.slug}/{path}").status_code == 404, path


def test_each_change_of_the_form_counts_what_there_is_no_second_time(
    app: FastAPI, sign_in: SignIn, session: Session, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cache, "KEPT_FOR", 10**9)
    monkeypatch.setattr(cache, "COMMITTING", timedelta(0))
    app.state.available_to_rounds = Cache(worth_keeping=-1)
    looked, original = [], service.Available.of

    def of(*arguments: Any) -> service.Available:
        looked.append(arguments)
        return original(*arguments)

    monkeypatch.setattr(service.Available, "of", of)
    client, labelers = sign_in("operator", "labeler"), [factories.user(session).id]
    url = f"/projects/{project.slug}/rounds/preview"

    def to_train_on(client: SignedIn, **settings: str) -> str:
        soup = BeautifulSoup(client.get(url, params=FORM | settings).text, "html.parser")
        return next(s for s in soup.select(".stat") if "To train on" in s.text).select_one(".stat-value").text  # type: ignore[union-attr]

    assert to_train_on(client) == "20"
    decided(session, project, factories.prompt(session, project), labelers, preferences=(1,))
    session.commit()
    assert to_train_on(client) == "20"
    assert to_train_on(client, train_limit="20") == "20"
    assert len(looked) == 1
    assert client.user is not None
    decided(session, project, factories.prompt(session, project), [client.user.id], preferences=(1,))
    session.commit()
    assert to_train_on(client) == "22"
    assert to_train_on(sign_in("operator")) == "22"
    assert len(looked) == 2
    other = make_project(session, train=21)
    session.commit()
    soup = BeautifulSoup(client.get(f"/projects/{other.slug}/rounds/new").text, "html.parser")
    assert "21" in [stat.text for stat in soup.select(".stat-value")]


def test_curves_and_metrics_are_downloaded(sign_in: SignIn, session: Session, project: Project) -> None:
    client = sign_in("operator")
    round_ = factories.round_(session, project, number=7, algorithm="dpo", state="policy", config={})
    run = factories.run(session, project, "dpo", round_id=round_.id, state="running")
    for step, value in ((1, 0.7), (2, 0.5), (3, float("nan"))):
        session.add(Metric(run_id=run.id, name="loss", step=step, value=value))
    session.add(Metric(run_id=run.id, name="eval_loss", slice="domain=x", step=2, value=0.6))
    session.commit()
    base = f"/projects/{project.slug}/rounds/7"
    page = BeautifulSoup(client.get(base).text, "html.parser")
    titles = [title.text for title in page.select(".charts h3")]
    place = titles.index("Policy: loss")
    assert page.select(".charts figure")[place].select_one(f'a[href="{base}/files/curve-{place}.svg"]')
    assert client.get(f"{base}/files/curve-{place}.csv").text.splitlines() == [
        "figure,series,step,value,low,high",
        "Policy: loss,training loss,1.0,0.7,,",
        "Policy: loss,training loss,2.0,0.5,,",
    ]
    assert client.get(f"{base}/files/curve-{place}.svg").text.count("<circle") == 2
    assert client.get(f"{base}/files/metrics.csv").text.splitlines() == [
        "run,metric,slice,step,value",
        "dpo,eval_loss,domain=x,2,0.6",
        *(f"dpo,loss,,{step},{value}" for step, value in ((1, 0.7), (2, 0.5), (3, "nan"))),
    ]
    assert client.get(f"{base}/files/curve-99.svg").status_code == 404
    assert client.get(f"{base}/files/other.svg").status_code == 422
