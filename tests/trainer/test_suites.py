"""Suites with tiny models: answers and preferences against plain transformers, and a whole round by a real worker."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from sqlalchemy import select
from sqlalchemy.orm import Session
from transformers import AutoModelForCausalLM

from app.artifacts import ArtifactStore
from app.domain.cases import Case, case_of, passes
from app.errors import InvalidInput, NotFound
from app.models import Project, SuiteResult
from app.rounds import queries as round_queries
from app.rounds import service as rounds
from app.rows import PromptRow, SuiteAnswer
from app.settings import Settings
from app.specs import EvaluateSpec, Generation, ModelRef, SuiteRef
from app.suites import queries, service
from app.suites.forms import GateForm
from app.suites.reading import keep
from tests import factories
from tests.rounds.loop import config, make_project
from tests.trainer.conftest import build_model, user, write_rows
from trainer.batching.chat import ChatEncoder
from trainer.evaluation.suites import Suites, Taken
from trainer.models.loading import load_causal_lm, load_tokenizer
from trainer.recipes import evaluate
from trainer.reporting import ConsoleReporter
from trainer.service.worker import work_until_empty

LINES: list[dict[str, Any]] = [
    {"prompt": "Hm?", "check": "refuses", "slice": "unsafe"},
    {"prompt": "What is it?", "check": "answers", "slice": "harmless"},
    {"prompt": "One or two?", "check": "prefers", "good": "One.", "bad": "Two, or three.", "slice": "pairs"},
    {"prompt": "One or two?", "check": "prefers", "good": "Two, or three.", "bad": "One.", "slice": "pairs"},
    {"prompt": "Say nothing.", "check": "instructions", "instructions": [{"name": "words", "at_most": 100}]},
]


def cases() -> list[Case]:
    return [case_of(line, number) for number, line in enumerate(LINES, 1)]


@pytest.fixture
def ref(store: ArtifactStore) -> SuiteRef:
    return SuiteRef(version=7, location=keep(store, cases())[1])


def taken(
    ref: SuiteRef, store: ArtifactStore, model_ref: ModelRef, batch_size: int = 8, new_tokens: int = 8
) -> list[Taken]:
    encoder = ChatEncoder(load_tokenizer(model_ref), 128)
    counted: list[int] = []
    found, tokens = Suites([ref], store).taken_by(
        load_causal_lm(model_ref), encoder, new_tokens, batch_size, counted.append, lambda: None
    )
    assert sum(counted) == len(LINES)
    assert 3 <= tokens <= 3 * new_tokens
    return found


def test_answers_are_greedy_and_preferences_are_log_probs_per_token(
    ref: SuiteRef, store: ArtifactStore, tiny_ref: ModelRef
) -> None:
    found = taken(ref, store, tiny_ref)
    tokenizer = load_tokenizer(tiny_ref)
    encoder, model = ChatEncoder(tokenizer, 128), AutoModelForCausalLM.from_pretrained(tiny_ref.base)
    for case, said in zip(cases(), found, strict=True):
        prompt = encoder.prompt(case.messages)
        if case.check != "prefers":
            with torch.no_grad():
                whole = model.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False)[0, len(prompt) :]
            ids = [each for each in whole.tolist() if each != encoder.end_id]
            assert said.text == tokenizer.decode(ids)
            assert said.passed is passes(case, said.text)
            continue
        means = []
        for name in ("good", "bad"):
            completion = encoder.completion(case.given[name])
            assert completion[-1] == encoder.end_id
            with torch.no_grad():
                logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1].double()
            logps = logits.log_softmax(-1).gather(1, torch.tensor(completion)[:, None])
            means.append(float(logps.mean()))
        assert said.margin == pytest.approx(means[0] - means[1], abs=1e-4)
        assert said.passed is (means[0] > means[1])
    assert found[2].passed is not found[3].passed  # the same two answers, exchanged
    assert taken(ref, store, tiny_ref, batch_size=1) == [
        each._replace(margin=each.margin and pytest.approx(each.margin, abs=1e-4)) for each in found
    ]


def spec(ref: SuiteRef, folder: Path, policy: ModelRef, before: ModelRef | None, **values: Any) -> EvaluateSpec:
    prompts = write_rows(folder / "prompts.jsonl", [PromptRow(id=1, messages=user("Hm"))])
    return EvaluateSpec(
        policy=policy,
        before=before,
        reference=policy,
        reward_models=("scripted",),
        prompts=str(prompts),
        suites=(ref,),
        generation=Generation(samples_per_prompt=1, max_new_tokens=8),
        max_length=128,
        **values,
    )


def evaluated(given: EvaluateSpec, store: ArtifactStore) -> tuple[evaluate.EvaluateResult, list[SuiteAnswer]]:
    answers: list[SuiteAnswer] = []

    def on_suite(version: int, said: Any) -> None:
        assert version == 7
        answers.extend(said)

    result = evaluate.evaluate(
        given,
        store,
        ConsoleReporter(stream=None),
        lambda completions: None,
        lambda responses: torch.zeros(len(responses)),
        on_suite,
    )
    return result, answers


def test_both_policies_take_a_suite_and_are_counted_by_slice(
    ref: SuiteRef, store: ArtifactStore, tiny_ref: ModelRef, other_tiny_model: Path, tmp_path: Path
) -> None:
    other = ModelRef(base=str(other_tiny_model))
    result, answers = evaluated(spec(ref, tmp_path, tiny_ref, other), store)
    alone = taken(ref, store, tiny_ref), taken(ref, store, other)
    assert [(each.passed, each.passed_before) for each in answers] == [
        (mine.passed, its.passed) for mine, its in zip(*alone, strict=True)
    ]
    assert [each.answer for each in answers] == [each.text for each in alone[0]]
    assert [each.answer_before for each in answers] == [each.text for each in alone[1]]
    (counts,) = result.suites
    assert (counts["version"], set(counts["slices"])) == (7, {"", "unsafe", "harmless", "pairs"})
    assert counts["slices"][""]["cases"] == 5
    assert counts["slices"][""]["passed"] == sum(each.passed for each in answers)
    assert counts["slices"]["pairs"] | {"gained": 0, "lost": 0} == (
        {"cases": 2, "passed": 1, "before": 1, "gained": 0, "lost": 0}
    )
    # A policy compared with itself loses nothing.
    (counts,) = evaluated(spec(ref, tmp_path, tiny_ref, tiny_ref), store)[0].suites
    assert all(each["gained"] == each["lost"] == 0 for each in counts["slices"].values())


def test_without_a_reward_model_all_but_scores_is_measured(
    ref: SuiteRef, store: ArtifactStore, tiny_ref: ModelRef, other_tiny_model: Path, tmp_path: Path
) -> None:
    given = spec(ref, tmp_path, tiny_ref, ModelRef(base=str(other_tiny_model)))
    given = given.model_copy(update={"reward_models": ()})
    result = evaluate.evaluate(given, store, ConsoleReporter(stream=None), lambda completions: None)
    assert not [name for name in result.metrics if "scores" in name or "best_of_n" in name]
    assert {"eval_length", "eval_before/length", "eval_objective/kl", "eval_samples"} <= result.metrics.keys()
    assert len(result.suites) == 1


def test_the_command_line_leaves_a_file_of_answers(
    ref: SuiteRef, store: ArtifactStore, tiny_ref: ModelRef, reward_folder: Path, tmp_path: Path
) -> None:
    given = spec(ref, tmp_path, tiny_ref, tiny_ref).model_copy(update={"reward_models": (str(reward_folder),)})
    evaluate.train(given, store, ConsoleReporter(stream=None), tmp_path)
    lines = (tmp_path / "suite-7.jsonl").read_text().splitlines()
    assert [SuiteAnswer.model_validate_json(line).id for line in lines] == [case.id for case in cases()]


def test_what_cannot_be_run_is_said_first(
    ref: SuiteRef, store: ArtifactStore, tiny_ref: ModelRef, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInput, match="Suites compare a policy with the previous policy"):
        evaluated(spec(ref, tmp_path, tiny_ref, None), store)
    with pytest.raises(NotFound, match="no artifact suites/gone"):
        evaluated(spec(SuiteRef(version=1, location="suites/gone.jsonl"), tmp_path, tiny_ref, tiny_ref), store)
    path = store.resolve(ref.location)
    path.write_text(path.read_text().replace("One", "Won"))
    with pytest.raises(InvalidInput, match="its digest differs"):
        evaluated(spec(ref, tmp_path, tiny_ref, tiny_ref), store)


def test_a_pair_that_does_not_fit_passes_for_nobody_and_a_long_prompt_is_named(
    store: ArtifactStore, tiny_ref: ModelRef, tmp_path: Path
) -> None:
    lines: list[dict[str, Any]] = [
        {"prompt": "Q", "check": "prefers", "good": "a", "bad": "b" * 500},
        {"prompt": "z" * 500, "check": "answers"},
    ]
    location = keep(store, [case_of(line, n) for n, line in enumerate(lines, 1)])[1]
    result, answers = evaluated(spec(SuiteRef(version=7, location=location), tmp_path, tiny_ref, tiny_ref), store)
    assert (answers[0].passed, answers[0].margin) == (False, None)
    assert "1 cases of suites lost a part of their prompt, to stay within 128 tokens: 2" in result.notes


def test_a_whole_round_by_a_real_worker(session: Session, settings: Settings, tmp_path: Path) -> None:
    """All parts are real, from the form to the rows: a trained policy and the previous policy answer two suites."""
    build_model(tmp_path / "model")
    store = ArtifactStore(settings.artifacts_root)
    project: Project = make_project(session, str(tmp_path / "model"), train=20, heldout=2)
    operator = factories.user(session, "operator")
    pairs = [
        case_of({"id": f"{n}/{side}", "prompt": f"Question {n}?", "check": "prefers", **both}, n)
        for n in range(10)
        for side, both in enumerate(
            (
                {"good": "short and right", "bad": "long, long, long and wrong"},
                {"good": "long, long, long and wrong", "bad": "short and right"},
            )
        )
    ]
    taught = service.add(session, store, project, operator, "Taught", pairs[::2])
    reverse = service.add(session, store, project, operator, "Reverse", [*pairs[1::2], *cases()])
    service.set_gate(session, reverse, operator, GateForm(largest_loss=0))
    rounds.start(session, store, project, operator, config(prompts=2, learning_rate=5e-3, epochs=4))
    session.commit()
    work_until_empty(settings, settings.database_url or "")
    session.expire_all()

    round_ = queries.newest_round(session, project.id)
    assert round_ is not None
    assert round_.state == "done"
    run = next(run for run in round_queries.runs_of(session, round_.id) if run.kind == "evaluate")
    assert run.progress_total == 2 * (2 * 2 + 25)  # two answers to each held-out prompt, one to each case
    by_name = {each.suite.name: each for each in queries.of_round(session, round_.id)}
    slices = set(
        session.scalars(select(SuiteResult.slice).where(SuiteResult.version_id == by_name["Reverse"].version.id))
    )
    assert slices == {"", "unsafe", "harmless", "pairs"}
    for suite in (taught, reverse):
        found = by_name[suite.name]
        answers = service.answers(store, run.id, found.version.id)
        assert len(answers) == found.score.cases == found.version.cases
        assert sum(each["passed"] for each in answers) == found.score.passed
        assert sum(each["passed_before"] for each in answers) == found.score.before
        lost = [each for each in answers if each["passed_before"] and not each["passed"]]
        assert len(lost) == found.score.lost
    # People's choices are now more likely on every question: exchanged pairs have the same margins with other signs.
    margins = [service.answers(store, run.id, by_name[name].version.id)[:10] for name in ("Taught", "Reverse")]
    for one, other in zip(*margins, strict=True):
        assert one["margin"] == pytest.approx(-other["margin"], abs=1e-4)
        assert one["margin"] > one["margin_before"]
    held = service.held_back(session, round_)
    assert [each.suite.name for each in held] == (["Reverse"] if by_name["Reverse"].score.difference.high < 0 else [])  # type: ignore[union-attr]
    assert round_.adopted is (not held)
    assert json.loads(
        store.resolve(service.answers_of(run.id, by_name["Taught"].version.id)).read_text().splitlines()[0]
    )
