"""Execute a run of an AI judge: ask its endpoint about every comparison in both orders, and store the verdicts.

Each comparison is stored in its own transaction and is not asked again, so a killed run resumes where it ended.
"""

import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from threading import Event
from typing import Any, NamedTuple

from app.domain.judges import Card, RubricText, both, question, verdict_in
from app.errors import InvalidInput, PrefloopError, Unavailable
from app.judges import queries
from app.judges import service as judges
from app.judges.keys import key_of
from app.models import Judge
from app.rounds import service as rounds
from app.specs import JudgeSpec, RunSpec
from trainer.service.judge_endpoint import BadAnswer, Endpoint, Halted, Reply
from trainer.service.recording import RunRecorder, patiently
from trainer.service.tasks import Runner

KEPT = 1500  # characters to store from the end of an answer
# If this many first answers of a run are all unreadable, the run fails: later answers would be unreadable too.
HOPELESS = 10

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
        side = verdict_in(reply.text, swapped=swapped)
        if side is None:
            where = "The answer was cut before its verdict" if reply.is_cut else "The answer contains no verdict"
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
    """Executes judges' runs, one at a time, in parallel with the worker's other runs."""

    def _tidy(self) -> None:
        """Do nothing: a judge's run loads no model, and freeing memory could disturb a training run in parallel."""

    def _run(self, spec: RunSpec, recorder: RunRecorder) -> None:
        assert isinstance(spec, JudgeSpec)
        halt = Event()
        endpoint = None
        try:
            judge, endpoint = patiently(lambda: self._endpoint(spec, halt))
            endpoint.check()
            result = self._test(spec, endpoint) if spec.rubric is None else self._judge(spec, judge, endpoint, recorder)
        except PrefloopError as error:
            if spec.rubric is None:
                self._tested(spec, str(error), None)
            raise
        finally:
            halt.set()
            if endpoint is not None:
                endpoint.close()

        def finish(session: Any, run: Any) -> None:
            rounds.run_finished(session, self.store, run, result)
            if served := queries.served_in(session, run.id):
                session.get_one(Judge, spec.judge).served_model = served[-1]
            judges.after_run(session, run)

        self._end(recorder, finish)

    def _endpoint(self, spec: JudgeSpec, halt: Event) -> tuple[Judge, Endpoint]:
        with self.sessions() as session:
            judge = session.get_one(Judge, spec.judge)
            if judge.off_at is not None:
                raise InvalidInput(f"{judge.name} is switched off.", "Switch it on, then start the run again.")
            session.expunge(judge)
        endpoint = Endpoint(
            spec.url,
            spec.model,
            key_of(self.settings.signing_key, judge),
            timeout=judge.timeout_seconds,
            retries=judge.retries,
            max_tokens=spec.max_tokens,
            hosts=self.settings.allowed_judge_hosts,
            halt=halt,
        )
        return judge, endpoint

    # ---- a test

    def _test(self, spec: JudgeSpec, endpoint: Endpoint) -> dict[str, Any]:
        judged = judge_one(endpoint, TEST_RUBRIC, TEST_CARD)
        if judged.error is not None:
            raise Unavailable(judged.error, "Choose a model that follows the form of the answer, or allow more tokens.")
        self._tested(spec, None, judged.replies[-1].model)
        said = [reply.text[-KEPT:] for reply in judged.replies]
        right = judged.first == judged.second == -1
        return {"said": said, "right": right, "ms": judged.ms, "model": judged.replies[-1].model}

    def _tested(self, spec: JudgeSpec, error: str | None, served: str | None) -> None:
        def write() -> None:
            with self.sessions.begin() as session:
                queries.set_tested(session, spec.judge, error, served)

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
        total = len(spec.anchors) + len(spec.comparisons)
        before = total - len(tasks)
        failed = self._ask_all(judge, endpoint, rubric, rubric_id, tasks, recorder, before, total)
        return {"judged": len(tasks) - failed, "failed": failed, "before": before}

    def _ask_all(
        self,
        judge: Judge,
        endpoint: Endpoint,
        rubric: RubricText,
        rubric_id: int,
        tasks: Sequence[_Task],
        recorder: RunRecorder,
        before: int,
        total: int,
    ) -> int:
        """Ask about all comparisons, several at once; return how many answers could not be read."""
        waiting, under_way = list(tasks[::-1]), dict[Future[Judged], _Task]()
        answered = failed = 0
        pool = ThreadPoolExecutor(judge.concurrency, thread_name_prefix="judge")
        try:
            while waiting or under_way:
                while waiting and len(under_way) < judge.concurrency:
                    task = waiting.pop()
                    under_way[pool.submit(judge_one, endpoint, rubric, task.card)] = task
                recorder.progress(before + answered, total, "comparisons judged")
                ended, _ = wait(under_way, timeout=0.5, return_when=FIRST_COMPLETED)
                problem: Exception | None = None
                for future in ended:
                    task = under_way.pop(future)
                    try:
                        judged = future.result()
                    except (PrefloopError, Halted) as error:
                        problem = error  # raised below, after the other finished answers are stored
                        continue
                    self._store(judge, rubric_id, task, judged, recorder)
                    answered, failed = answered + 1, failed + (judged.error is not None)
                    if failed == answered == HOPELESS:
                        problem = Unavailable(
                            f"The first {HOPELESS} answers could not be read. The last one: {judged.error}",
                            "Choose a model that follows the form of the answer, or allow more tokens.",
                        )
                if problem is not None:
                    raise problem
            recorder.progress(total, total, "comparisons judged")
        finally:
            endpoint.halt.set()
            pool.shutdown(wait=False, cancel_futures=True)
        return failed

    def _store(self, judge: Judge, rubric_id: int, task: _Task, judged: Judged, recorder: RunRecorder) -> None:
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


def cost(judge: Judge, prompt_tokens: int, completion_tokens: int) -> float | None:
    """Return the cost by the judge's prices per million tokens; None if no price is set."""
    if judge.prompt_price is None and judge.completion_price is None:
        return None
    return (prompt_tokens * (judge.prompt_price or 0) + completion_tokens * (judge.completion_price or 0)) / 1e6
