"""Execute a run of an AI judge: ask its endpoint about every comparison in both orders, and store the verdicts.

Each comparison is stored in its own transaction and is not asked again, so a killed run resumes where it ended.
"""

import time
from concurrent.futures import ThreadPoolExecutor, wait
from threading import Event
from typing import Any, NamedTuple

from app.domain.judges import Card, RubricText, both, question, verdict_in
from app.errors import InvalidInput, PrefloopError, Unavailable
from app.judges import queries
from app.judges import service as judges
from app.judges.keys import key_of
from app.models import Judge
from app.rounds import service as rounds
from app.specs import JudgeSpec, ReviseSpec, RunSpec
from trainer.service.asking import ask_all
from trainer.service.costs import cost
from trainer.service.judge_endpoint import BadAnswer, Endpoint, Reply
from trainer.service.recording import RunRecorder, patiently
from trainer.service.revising import revise_all
from trainer.service.tasks import Runner

KEPT = 1500  # characters to store from the end of an answer

TEST_RUBRIC = RubricText("Prefer the response that answers the question correctly.", True)
TEST_CARD = Card(
    ({"role": "user", "content": "What is the capital of France?"},),
    "The capital of France is Paris.",
    "Bananas are yellow.",
)


class Judged(NamedTuple):
    """The result for a comparison: the verdicts in both orders, or the reason why there is no verdict."""

    first: int | None
    second: int | None
    error: str | None
    replies: tuple[Reply, ...]
    ms: int


def judge_one(endpoint: Endpoint, rubric: RubricText, card: Card) -> Judged:
    """Ask about a comparison twice, with A first and with B first.

    Raises:
        Unavailable, Halted: see `Endpoint.ask`.
    """
    began, replies, sides = time.monotonic(), [], []
    error = None
    for swapped in (False, True):
        try:
            reply = endpoint.ask(question(rubric, card, swapped=swapped))
        except BadAnswer as problem:
            error = str(problem)
            break
        replies.append(reply)
        # The verdict ends an answer. Before a cut there may be one that the judge quoted from a response.
        side = None if reply.is_cut else verdict_in(reply.text, swapped=swapped)
        if side is None:
            where = "The answer was cut before its end" if reply.is_cut else "The answer contains no verdict"
            error = f"{where}: {' '.join(reply.text.split())[-200:] or '(nothing)'}"
            break
        sides.append(side)
    ms = round(1000 * (time.monotonic() - began))
    first, second = sides if error is None else (None, None)
    return Judged(first, second, error, tuple(replies), ms)


class _Task(NamedTuple):
    comparison: int
    is_anchor: bool
    card: Card


class JudgeRunner(Runner):
    """Executes runs that only ask a judge's endpoint, one at a time, beside the worker's other runs.

    These are runs of judges, and constitution runs, in which the judge is the critic (`trainer.service.revising`).
    """

    def _tidy(self) -> None:
        """Do nothing: a judge's run loads no model, and freeing memory could disturb a training run in parallel."""

    def _run(self, spec: RunSpec, recorder: RunRecorder) -> None:
        assert isinstance(spec, JudgeSpec | ReviseSpec)
        is_test = isinstance(spec, JudgeSpec) and spec.rubric is None
        halt = Event()
        endpoint = None
        try:
            judge, endpoint = patiently(lambda: self._endpoint(spec, halt))
            endpoint.check()
            if isinstance(spec, ReviseSpec):
                result = revise_all(self.sessions, spec, judge, endpoint, recorder)
            elif is_test:
                result = self._test(spec, endpoint, recorder)
            else:
                result = self._judge(spec, judge, endpoint, recorder)
        except PrefloopError as error:
            if is_test:
                self._tested(spec.judge, str(error), None)
            raise
        finally:
            halt.set()
            if endpoint is not None:
                endpoint.close()

        def finish(session: Any, run: Any) -> None:
            rounds.run_finished(session, self.store, run, result)
            if isinstance(spec, JudgeSpec):
                if served := queries.served_in(session, run.id):
                    session.get_one(Judge, spec.judge).served_model = served[-1]
                judges.after_run(session, run)

        self._end(recorder, finish)

    def _endpoint(self, spec: JudgeSpec | ReviseSpec, halt: Event) -> tuple[Judge, Endpoint]:
        with self.sessions() as session:
            judge = session.get_one(Judge, spec.judge)
            if judge.off_at is not None:
                raise InvalidInput(f"{judge.name} is switched off.", "Switch it on, then start the run again.")
            session.expunge(judge)
        endpoint = Endpoint(
            spec.url,
            spec.model,
            key_of(self.settings.signing_key, judge, self.settings.allowed_judge_hosts),
            timeout=judge.timeout_seconds,
            retries=judge.retries,
            max_tokens=spec.max_tokens,
            hosts=self.settings.allowed_judge_hosts,
            halt=halt,
        )
        return judge, endpoint

    # ---- a test

    def _test(self, spec: JudgeSpec, endpoint: Endpoint, recorder: RunRecorder) -> dict[str, Any]:
        # In a thread, as comparisons are asked about: a silent endpoint holds up neither a cancel nor other judges.
        pool = ThreadPoolExecutor(1, thread_name_prefix="judge")
        asked = pool.submit(judge_one, endpoint, TEST_RUBRIC, TEST_CARD)
        pool.shutdown(wait=False)
        while not wait([asked], timeout=0.5).done:
            recorder.progress(0, 1, "endpoint tested")
        judged = asked.result()
        if judged.error is not None:
            raise Unavailable(judged.error, "Choose a model that follows the form of the answer, or allow more tokens.")
        self._tested(spec.judge, None, judged.replies[-1].model)
        said = [reply.text[-KEPT:] for reply in judged.replies]
        right = judged.first == judged.second == -1
        return {"said": said, "right": right, "ms": judged.ms, "model": judged.replies[-1].model}

    def _tested(self, judge_id: int, error: str | None, served: str | None) -> None:
        def write() -> None:
            with self.sessions.begin() as session:
                queries.set_tested(session, judge_id, error, served)

        patiently(write)

    # ---- comparisons

    def _judge(self, spec: JudgeSpec, judge: Judge, endpoint: Endpoint, recorder: RunRecorder) -> dict[str, Any]:
        rubric_id = spec.rubric
        assert rubric_id is not None

        def read() -> tuple[RubricText, list[_Task]]:
            with self.sessions() as session:
                done, again = queries.judged_already(
                    session, spec.judge, rubric_id, recorder.run_id, spec.comparisons, spec.anchors
                )
                wanted = [(id_, True) for id_ in spec.anchors if id_ not in again]
                wanted += [(id_, False) for id_ in spec.comparisons if id_ not in done]
                cards = queries.cards(session, judge.project_id, [id_ for id_, _ in wanted])
                rubric = queries.rubric_text(session, rubric_id)
            return rubric, [_Task(id_, anchor, cards[id_]) for id_, anchor in wanted if id_ in cards]

        rubric, tasks = patiently(read)
        before = len(spec.anchors) + len(spec.comparisons) - len(tasks)
        failed = ask_all(
            endpoint,
            tasks,
            lambda task: judge_one(endpoint, rubric, task.card),
            lambda task, judged: self._store(judge, rubric_id, task, judged, recorder),
            recorder,
            at_once=judge.concurrency,
            before=before,
            words="comparisons judged",
        )
        return {"judged": len(tasks) - failed, "failed": failed, "before": before}

    def _store(self, judge: Judge, rubric_id: int, task: _Task, judged: Judged, recorder: RunRecorder) -> str | None:
        prompt_tokens = sum(reply.prompt_tokens for reply in judged.replies)
        completion_tokens = sum(reply.completion_tokens for reply in judged.replies)
        values = {
            "judge_id": judge.id,
            "comparison_id": task.comparison,
            "rubric_id": rubric_id,
            "run_id": recorder.run_id,
            "is_anchor": task.is_anchor,
            "first": judged.first,
            "second": judged.second,
            "verdict": None if judged.first is None or judged.second is None else both(judged.first, judged.second),
            "error": judged.error,
            "said": [reply.text[-KEPT:] for reply in judged.replies],
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "cost": cost(judge, prompt_tokens, completion_tokens),
            "ms": judged.ms,
            "served_model": judged.replies[-1].model if judged.replies else "",
        }
        recorder.worked(prompt_tokens + completion_tokens)

        def write() -> None:
            with recorder.held() as (session, run):
                queries.store(session, values)
                rounds.run_progressed(run)

        patiently(write)
        return judged.error
