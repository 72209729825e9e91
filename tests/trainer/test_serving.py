"""Sampling through an OpenAI-compatible server: the requests, and the errors if it fails."""

import re
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch

from app.artifacts import ArtifactStore
from app.errors import InvalidInput, ModelUnavailable, PrefloopError, Unavailable
from app.rows import PromptRow
from app.specs import Generation, ModelRef, SampleSpec, Server
from tests.trainer.conftest import user, write_rows
from tests.trainer.vllm import Fault, Handler, Vllm, break_off, hang, status, text_of
from trainer.recipes import sample
from trainer.recipes.sample import Completion
from trainer.reporting import ConsoleReporter, RunCancelled
from trainer.sampling.responses import sample_seed
from trainer.sampling.serving import Answer, ServedModel


@pytest.fixture
def vllm() -> Iterator[Vllm]:
    server = Vllm()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.closing.set()
    server.shutdown()
    server.server_close()
    thread.join(timeout=20)


ROWS = [PromptRow(id=100 + i, messages=user(f"Question {i}")) for i in range(6)]
GENERATION = Generation(samples_per_prompt=2, max_new_tokens=9, temperature=0.7)


def spec_of(vllm: Vllm, **changes: Any) -> Server:
    return Server(**{"url": vllm.url, "model": "pf", "timeout_seconds": 20, "retries": 2, "concurrency": 4, **changes})


def respond(server: Server, key: str | None = None, rows: list[PromptRow] = ROWS) -> list[Answer]:
    wanted = [(row, range(2)) for row in rows]
    batches = ServedModel(server, key).respond(wanted, GENERATION, 3, torch.Generator().manual_seed(0))
    return [answer for batch in batches for answer in batch]


def test_every_sample_is_a_request_with_its_own_seed_on_the_whole_distribution(vllm: Vllm) -> None:
    answers = respond(spec_of(vllm))
    assert sorted((a.row.id, a.sample_index) for a in answers) == [(row.id, k) for row in ROWS for k in (0, 1)]
    assert len({a.seed for a in answers}) == len(vllm.requests) == 12
    for answer in answers:
        assert answer.seed == sample_seed(3, "sample", answer.row.id, answer.sample_index) >> 32 < 2**31
        [request] = [request for request in vllm.requests if request["seed"] == answer.seed]
        assert request["messages"] == list(answer.row.messages)
        assert (request["model"], request["temperature"], request["max_tokens"]) == ("pf", 0.7, 9)
        assert (request["top_p"], request["top_k"], request["min_p"], request["repetition_penalty"]) == (1, -1, 0, 1)
        assert answer.text == text_of(request)
        assert answer.finished == (int(answer.text[0], 16) >= 4)
        assert answer.n_tokens == (5 if answer.finished else 9)
    assert {answer.finished for answer in answers} == {True, False}


def test_the_same_seed_asks_for_the_same_again(vllm: Vllm) -> None:
    first = {(a.row.id, a.sample_index): a for a in respond(spec_of(vllm))}
    again = {(a.row.id, a.sample_index): a for a in respond(spec_of(vllm, concurrency=1))}
    assert first == again


def test_as_many_requests_as_allowed_are_under_way_and_no_more(vllm: Vllm) -> None:
    together = threading.Barrier(3)

    def wait_for_others(handler: Handler) -> None:
        together.wait(timeout=20)  # fails unless three requests run at once
        handler.complete()

    vllm.ordinary = wait_for_others
    assert len(respond(spec_of(vllm, concurrency=3))) == 12
    assert vllm.most_under_way == 3


def test_the_server_is_kept_busy_while_answers_are_worked_on(vllm: Vllm) -> None:
    """Scoring a batch can take longer than a request's timeout; this must not end a request."""
    handed_on, all_asked = threading.Event(), threading.Event()

    def wait_for_the_first_batch(handler: Handler) -> None:
        assert handed_on.wait(20)
        handler.complete()

    def complete(handler: Handler) -> None:
        if len(vllm.requests) == 12:
            all_asked.set()
        handler.complete()

    vllm.faults, vllm.ordinary = [Handler.complete, wait_for_the_first_batch], complete
    wanted = [(row, range(2)) for row in ROWS]
    server = ServedModel(spec_of(vllm, concurrency=1), None)
    batches = server.respond(wanted, GENERATION, 3, torch.Generator().manual_seed(0))
    first = next(batches)
    handed_on.set()
    assert all_asked.wait(20)
    assert len(first) + sum(len(batch) for batch in batches) == 12


@pytest.mark.parametrize(
    "faults",
    [
        [status(500), status(500)],
        [status(429), status(503)],
        [break_off],
        [hang],
    ],
    ids=["500 twice", "429 and 503", "connection closed in the body", "no answer in time"],
)
def test_what_failed_by_chance_is_tried_again(vllm: Vllm, faults: list[Fault]) -> None:
    vllm.faults = list(faults)
    seconds = 2 if hang in faults else 20  # a slow machine's ordinary answers must not time out
    answers = respond(spec_of(vllm, concurrency=1, timeout_seconds=seconds), rows=ROWS[:2])
    assert len(answers) == 4
    assert len(vllm.requests) == 4 + len(faults)
    assert Counter(request["seed"] for request in vllm.requests)[vllm.requests[0]["seed"]] == 1 + len(faults)


def failure(server: Server, key: str | None = None) -> PrefloopError:
    with pytest.raises(PrefloopError) as caught:
        respond(server, key)
    return caught.value


def caught_by_check(server: Server, key: str | None = None) -> PrefloopError:
    with pytest.raises(PrefloopError) as caught:
        ServedModel(server, key).check()
    return caught.value


def test_a_server_that_stays_broken_ends_the_run_by_name(vllm: Vllm) -> None:
    vllm.ordinary = status(500, "CUDA error: out of memory")
    error = failure(spec_of(vllm, concurrency=1))
    assert isinstance(error, Unavailable)
    assert len(vllm.requests) == 3
    assert "answered 500 to 3 attempts: CUDA error: out of memory" in error.message
    assert vllm.url in error.message


def test_a_server_that_hangs_ends_the_run_by_name(vllm: Vllm) -> None:
    vllm.ordinary = hang
    error = failure(spec_of(vllm, concurrency=1, timeout_seconds=0.2, retries=0))
    assert "did not answer within 0.2 seconds" in error.message


def test_no_server_at_all() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    server = Server(url=f"http://127.0.0.1:{port}/v1", model="pf", retries=0)
    for error in (failure(server), caught_by_check(server)):
        assert isinstance(error, Unavailable)
        assert f"http://127.0.0.1:{port}/v1 cannot be reached" in error.message
        assert "PREFLOOP_SAMPLING_URL" in error.advice


def test_a_wrong_key_and_a_right_one(vllm: Vllm) -> None:
    vllm.key = "secret"
    for error in (failure(spec_of(vllm), "wrong"), failure(spec_of(vllm)), caught_by_check(spec_of(vllm), "wrong")):
        assert isinstance(error, Unavailable)
        assert "refuses the key" in error.message
        assert "PREFLOOP_SAMPLING_KEY" in error.advice
        assert "wrong" not in str(error)
    ServedModel(spec_of(vllm), "secret").check()
    assert len(respond(spec_of(vllm), "secret")) == 12


@pytest.mark.parametrize("code", [301, 302, 307, 308])
def test_a_server_cannot_send_prompts_or_the_key_on_to_another_address(vllm: Vllm, code: int) -> None:
    """It is never contacted, whatever its name resolves to."""
    with Vllm() as inside:
        thread = threading.Thread(target=inside.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        elsewhere = f"{inside.url}/chat/completions"
        vllm.ordinary = lambda handler: handler.answer(code, {}, {"Location": elsewhere})
        error = failure(spec_of(vllm, concurrency=1), "secret")
        inside.shutdown()
        thread.join(timeout=20)
    assert inside.requests == []
    assert "sends requests on to another address" in error.message
    assert elsewhere not in str(error)
    assert len(vllm.requests) == 1  # a retry would change nothing


def test_a_key_with_a_line_end_is_taken_without_and_one_that_cannot_be_sent_is_not_told(vllm: Vllm) -> None:
    vllm.key = "secret"
    assert len(respond(spec_of(vllm), "secret\n")) == 12
    for key in ("sec\nret", "secrét"):  # the client's own error would contain the key
        error = caught_by_check(spec_of(vllm), key)
        assert "characters that no key has" in error.message
        assert "PREFLOOP_SAMPLING_KEY" in error.advice
        assert not re.search("sec|ret|é", error.message)
    assert len(vllm.requests) == 12


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:8000/v1",
        "http://[::1/v1",
        "http://127.0.0.1:99999/v1",
        "http:///v1",
        "http://127.0.0.1:1/v1\n",
        "http://my gpu:1/v1",
    ],
)
def test_an_address_that_is_none(url: str) -> None:
    error = caught_by_check(Server(url=url, model="pf"))
    assert isinstance(error, Unavailable)
    assert f"“{url}” is not the address of a server" in error.message
    assert "PREFLOOP_SAMPLING_URL" in error.advice


def test_a_server_that_is_not_there_is_not_waited_for_as_long_as_an_answer() -> None:
    client = ServedModel(Server(url="http://127.0.0.1:1/v1", model="pf", timeout_seconds=600), None)._client()
    assert isinstance(client.timeout, openai.Timeout)
    assert (client.timeout.connect, client.timeout.read) == (10, 600)


def test_what_a_server_says_is_told_without_the_key_and_as_a_database_can_hold_it(vllm: Vllm) -> None:
    vllm.ordinary = lambda handler: handler.answer(403, b"\0\xff no sec-ret-7 here\n\x1b[0m")
    error = failure(spec_of(vllm, concurrency=1), "sec-ret-7")
    assert error.message.endswith("refuses the key: \N{REPLACEMENT CHARACTER} no ... here [0m")


def test_names_and_reasons_of_a_server_are_told_as_a_database_can_hold_them(vllm: Vllm) -> None:
    vllm.ordinary = lambda handler: handler.complete(choice={"finish_reason": "tired\0\ud83d"})
    assert "by tired, neither by its end" in failure(spec_of(vllm, concurrency=1)).message
    vllm.models = ("one\0", "two\ud83d")
    assert caught_by_check(spec_of(vllm)).message.endswith("it serves one , two.")


def test_a_model_that_is_not_served_is_named_with_those_that_are(vllm: Vllm) -> None:
    server = spec_of(vllm, model="other")
    for error in (failure(server), caught_by_check(server)):
        assert isinstance(error, ModelUnavailable)
        assert "does not serve other; it serves pf, base." in error.message
        assert "PREFLOOP_SAMPLING_MODEL" in error.advice


def test_not_all_of_many_models_are_named(vllm: Vllm) -> None:
    vllm.models = tuple(f"model-{i}" for i in range(300))
    error = caught_by_check(spec_of(vllm))
    assert "it serves model-0, " in error.message
    assert error.message.endswith(", model-19 and 280 more.")


def test_an_address_without_its_path(vllm: Vllm) -> None:
    server = spec_of(vllm).model_copy(update={"url": vllm.url.removesuffix("/v1")})
    for error in (failure(server), caught_by_check(server)):
        assert "There is no OpenAI-compatible server at" in error.message
        assert "/v1" in error.advice


def test_a_prompt_that_does_not_fit(vllm: Vllm) -> None:
    vllm.ordinary = status(400, "This model's maximum context length is 8 tokens. However, you requested 12 tokens.")
    error = failure(spec_of(vllm, concurrency=1))
    assert isinstance(error, InvalidInput)
    assert "refuses prompt 10" in error.message
    assert "maximum context length is 8 tokens" in error.message
    assert "fewer new tokens" in error.advice


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda handler: handler.answer(200, b"<html>welcome"), "does not answer as an OpenAI-compatible server does"),
        (lambda handler: handler.answer(200, b'"text"'), "does not answer as an OpenAI-compatible server does"),
        (lambda handler: handler.answer(200, {"object": "?"}), "does not answer as an OpenAI-compatible server does"),
        (lambda handler: handler.complete(choices=[]), "without a choice"),
        (lambda handler: handler.complete(choice={"finish_reason": "content_filter"}), "by content_filter"),
        (lambda handler: handler.complete(usage=None), "how many tokens"),
        (lambda handler: handler.complete(usage={}), "does not answer as an OpenAI-compatible server does"),
        (
            lambda handler: handler.complete(usage={"completion_tokens": "many"}),
            "does not answer as an OpenAI-compatible server does",
        ),
        (lambda handler: handler.complete(choice={"message": None}), "does not answer as an OpenAI-compatible"),
        (lambda handler: handler.complete(choice={"message": {"content": ["a"]}}), "its content is list"),
        (
            lambda handler: handler.complete(choice={"message": {"content": None, "reasoning_content": "Hm."}}),
            "keeps the reasoning apart",
        ),
    ],
    ids=[
        *("garbage", "a string", "another object", "no choices", "filtered", "no usage"),
        *("empty usage", "usage in words", "no message", "a list of texts", "reasoning apart"),
    ],
)
def test_an_answer_that_is_none(vllm: Vllm, answer: Fault, says: str) -> None:
    vllm.ordinary = answer
    error = failure(spec_of(vllm, concurrency=1))
    assert isinstance(error, Unavailable)
    assert says in error.message
    assert error.advice


def test_an_answer_that_ends_at_once_is_an_empty_one(vllm: Vllm) -> None:
    vllm.ordinary = lambda handler: handler.complete(
        choice={"message": {"role": "assistant", "content": None}, "finish_reason": "stop"}
    )
    assert {(answer.text, answer.finished) for answer in respond(spec_of(vllm))} == {("", True)}


def test_half_a_character_is_none(vllm: Vllm) -> None:
    """Text that files and databases do not accept must not end a run."""
    vllm.ordinary = lambda handler: handler.complete(choice={"message": {"role": "assistant", "content": "Hm \ud83d."}})
    assert {answer.text for answer in respond(spec_of(vllm))} == {"Hm ?."}


def test_a_server_strict_about_the_protocol_is_asked_without_what_it_refuses(
    vllm: Vllm, caplog: pytest.LogCaptureFixture
) -> None:
    def strict(handler: Handler) -> None:
        for name in ("min_p", "repetition_penalty"):
            if name in handler.request_body:
                return status(400, f"Unrecognized request argument supplied: {name}")(handler)
        return handler.complete()

    vllm.ordinary = strict
    assert len(respond(spec_of(vllm, concurrency=1))) == 12
    assert len(vllm.requests) == 14  # each is refused once, and remembered
    assert not {"min_p", "repetition_penalty"} & vllm.requests[-1].keys()
    assert (vllm.requests[-1]["top_p"], vllm.requests[-1]["top_k"]) == (1, -1)  # fields that it accepts are still sent
    assert "does not take min_p:" in caplog.text
    assert "whole distribution" in caplog.text


# ---- the recipe ------------------------------------------------------------------------------------------------------


@pytest.fixture
def spec(vllm: Vllm, tiny_ref: ModelRef, tmp_path: Path) -> SampleSpec:
    path = tmp_path / "prompts.jsonl"
    write_rows(path, ROWS)
    return SampleSpec(
        models=(tiny_ref, tiny_ref), servers=(None, spec_of(vllm)), prompts=str(path), generation=GENERATION, seed=3
    )


def run(spec: SampleSpec, store: ArtifactStore, done: Any = ()) -> list[Completion]:
    completions: list[Completion] = []
    sample.sample(spec, store, ConsoleReporter(stream=None), completions.extend, done)
    return completions


def test_one_run_samples_here_and_there(spec: SampleSpec, store: ArtifactStore, vllm: Vllm) -> None:
    completions = run(spec, store)
    assert sorted((c.prompt_id, c.sample_index) for c in completions) == [(r.id, i) for r in ROWS for i in range(4)]
    served = [c for c in completions if c.sample_index >= 2]
    assert {c.text for c in served} == {text_of(request) for request in vllm.requests}
    assert {c.finish_reason for c in served} == {"eos", "length"}
    assert all((c.finish_reason == "length") == (c.n_tokens == 9) for c in served)
    assert all(c.sampling == {"temperature": 0.7, "max_new_tokens": 9} for c in completions)


def test_what_arrived_before_a_failure_is_kept_and_the_rest_comes_later(
    spec: SampleSpec, store: ArtifactStore, vllm: Vllm
) -> None:
    spec = spec.model_copy(update={"models": spec.models[:1], "servers": (spec_of(vllm, concurrency=2, retries=0),)})
    vllm.faults = [Handler.complete] * 7 + [status(500)]
    kept: list[Completion] = []
    with pytest.raises(Unavailable):
        sample.sample(spec, store, ConsoleReporter(stream=None), kept.extend)
    assert len(kept) >= 6  # the seventh may have been under way when the eighth failed
    rest = run(spec, store, done={(c.prompt_id, c.sample_index) for c in kept})
    assert sorted((c.prompt_id, c.sample_index) for c in kept + rest) == [(r.id, i) for r in ROWS for i in (0, 1)]


def test_answers_are_handed_on_while_others_are_awaited(spec: SampleSpec, store: ArtifactStore, vllm: Vllm) -> None:
    spec = spec.model_copy(update={"models": spec.models[:1], "servers": (spec_of(vllm, concurrency=4),)})
    handed_on = threading.Event()

    def wait(handler: Handler) -> None:
        assert handed_on.wait(20)  # the server waits until others are handed on
        handler.complete()

    vllm.faults = [Handler.complete, wait]
    batches: list[int] = []

    def on_completions(completions: Any) -> None:
        batches.append(len(completions))
        handed_on.set()

    sample.sample(spec, store, ConsoleReporter(stream=None), on_completions)
    assert len(batches) > 1
    assert sum(batches) == 12


def test_a_cancelled_run_leaves_the_server_at_once(spec: SampleSpec, store: ArtifactStore, vllm: Vllm) -> None:
    spec = spec.model_copy(update={"models": spec.models[:1], "servers": (spec_of(vllm, timeout_seconds=600),)})
    gone = threading.Event()

    def watch(handler: Handler) -> None:
        assert handler.connection.recv(1) == b""  # the client closed the connection
        gone.set()
        handler.close_connection = True

    vllm.ordinary = watch

    class Cancelling(ConsoleReporter):
        def progress(self, done: int, total: int, message: str = "") -> None:
            if vllm.requests:
                raise RunCancelled("The run was cancelled.")

    with pytest.raises(RunCancelled):
        sample.sample(spec, store, Cancelling(stream=None), lambda completions: None)
    assert gone.wait(20)


def test_a_wrong_name_shows_before_the_first_sample(spec: SampleSpec, store: ArtifactStore, vllm: Vllm) -> None:
    spec = spec.model_copy(update={"servers": (None, spec_of(vllm, model="other"))})
    handed_on: list[Completion] = []
    with pytest.raises(ModelUnavailable, match="does not serve other"):
        sample.sample(spec, store, ConsoleReporter(stream=None), handed_on.extend)
    assert handed_on == []


def test_the_key_is_a_setting(
    spec: SampleSpec, store: ArtifactStore, vllm: Vllm, monkeypatch: pytest.MonkeyPatch
) -> None:
    vllm.key = "from the environment"
    monkeypatch.setenv("PREFLOOP_SAMPLING_KEY", "from the environment")
    assert len(run(spec, store)) == 24
    monkeypatch.delenv("PREFLOOP_SAMPLING_KEY")
    with pytest.raises(Unavailable, match="refuses the key"):
        run(spec, store)


def test_more_servers_than_models_are_refused(spec: SampleSpec, store: ArtifactStore, vllm: Vllm) -> None:
    with pytest.raises(InvalidInput, match="3 servers for 2 models"):
        run(spec.model_copy(update={"servers": (None, None, spec_of(vllm))}), store)
