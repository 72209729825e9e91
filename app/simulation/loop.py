"""The loop, driven over HTTP: label, start a round, wait for it, measure, repeat."""

import json
import time
from collections import defaultdict
from collections.abc import Callable
from statistics import fmean
from typing import Any, NamedTuple

from app.errors import InvalidInput, PrefloopError
from app.rounds.forms import RECOMMENDED
from app.simulation.browser import Browser
from app.simulation.labelers import Crew
from app.simulation.preference import Score
from app.simulation.statistics import mean_score, win_rate

POLL_SECONDS = 2.0
Say = Callable[[str], None]


class RoundReport(NamedTuple):
    """The results of one round, as `make benchmark-loop` reports them. The field names are those of `--json`.

    Attributes:
        win_rate: the newest policy's win rate against the first policy, under the hidden preference, on held-out
            prompts.
        true: the newest policy's mean score under the hidden preference. `first_true` is the first policy's; so are
            other fields with the prefix `first_`.
        proxy: the newest policy's mean score by the round's reward model.
        kl, kl_k3: KL of the newest policy to the reference in nats per response, by two estimators.
        tokens: mean length of a response.
        finished: share of responses that were not cut by the limit.
        adopted: whether the round's policy became the project's policy; None if the service does not report it.
    """

    round: int
    judgments: int
    alpha: float | None
    rm_accuracy: float | None
    proxy: float | None
    kl: float | None
    kl_k3: float | None
    adopted: bool | None
    seconds: float
    win_rate: float | None = None
    win_rate_low: float | None = None
    win_rate_high: float | None = None
    true: float | None = None
    first_true: float | None = None
    tokens: float | None = None
    first_tokens: float | None = None
    finished: float | None = None
    first_finished: float | None = None


class Response(NamedTuple):
    """A response, its number of tokens, and whether it is finished."""

    text: str
    tokens: int
    finished: bool


class Loop:
    """A project in an operator's browser, and a crew that labels in it."""

    def __init__(self, operator: Browser, crew: Crew, project: str, score: Score, say: Say) -> None:
        self.operator = operator
        self.crew = crew
        self.base = f"/projects/{project}"
        self.score = score
        self.say = say

    def wait_for_samples(self, patience: float = 600) -> None:
        """Wait until the project has a model, and there are comparisons or sampling has ended."""
        deadline = time.monotonic() + patience
        if self._policy() == "none":  # the service fetches it at its first start
            self.say("waiting for the project's model")
        while self._policy() == "none":
            if time.monotonic() > deadline:
                raise PrefloopError("The project got no model in ten minutes.", "Its Settings page can give it one.")
            time.sleep(POLL_SECONDS)
        while self._sampling() and not self._to_compare():
            if time.monotonic() > deadline:
                raise PrefloopError(
                    "No comparison came in ten minutes.", "Is a worker running? Look at the Rounds page."
                )
            time.sleep(POLL_SECONDS)

    def turn(self, settings: dict[str, Any], limit: int) -> RoundReport:
        """Run one round: label what there is, train, and measure the new policy against the first one."""
        began = time.monotonic()
        self.wait_for_samples()
        judgments = self.crew.label_all(f"{self.base}/label", limit, self._sampling, self.say)
        agreement = self.operator.json(f"{self.base}/agreement", kind="simulated")
        number = self._start(settings)
        status = self._follow(number)
        metrics = self._last_metrics(number)
        return RoundReport(
            round=number,
            judgments=judgments,
            alpha=agreement["nominal_alpha"],
            rm_accuracy=metrics.get(("reward", "eval_accuracy")),
            proxy=metrics.get(("evaluate", "eval_objective/scores")),
            kl=metrics.get(("evaluate", "eval_objective/kl")),
            kl_k3=metrics.get(("evaluate", "eval_objective/kl_k3")),
            adopted=status.get("adopted"),
            seconds=round(time.monotonic() - began, 1),
            **self._heldout(),
        )

    def finish_labeling(self, limit: int) -> int:
        """Label the comparisons that the last round opened, which include its human evaluation."""
        return self.crew.label_all(f"{self.base}/label", limit, self._sampling, self.say)

    def people(self, number: int) -> dict[str, Any] | None:
        """Return people's preference between a round's policy and the previous one, as `sequence.Preference`."""
        status: dict[str, Any] = self.operator.json(f"{self.base}/rounds/{number}/status")
        said: dict[str, Any] | None = status["people"]["before"]
        return said

    # ---- pages -------------------------------------------------------------------------------------------------------

    def _to_compare(self) -> int:
        return int((self.operator.open(self.base).text(".stats .stat-value") or "0").replace(",", ""))

    def _policy(self) -> str | None:
        return self.operator.open(self.base).text(".stats .stat:last-child .stat-value")

    def _sampling(self) -> bool:
        return self.operator.open(self.base).soup.select_one(".progress-row") is not None

    def _start(self, settings: dict[str, Any]) -> int:
        algorithm = settings.get("algorithm", RECOMMENDED)
        form = self.operator.open(f"{self.base}/rounds/new?algorithm={algorithm}").form('form[action$="/rounds"]')
        if unknown := settings.keys() - form.values.keys() - form.choices.keys():
            known = ", ".join(sorted({*form.values, *form.choices} - {"csrf_token"}))
            raise InvalidInput(f"Unknown settings: {', '.join(sorted(unknown))}.", f"Known: {known}.")
        page = self.operator.send(form, **settings)
        return int(str(page.url).rpartition("/")[2])

    def _follow(self, number: int) -> dict[str, Any]:
        """Wait until the round ends, and return its status."""
        told = ""
        while True:
            status: dict[str, Any] = self.operator.json(f"{self.base}/rounds/{number}/status")
            now = ", ".join(f"{s['label']} {s['state']}" for s in status["stages"] if s["state"] != "waiting")
            if now != told:
                self.say(f"round {number}: {now}")
                told = now
            if status["finished"]:
                if status["state"] != "done":
                    raise PrefloopError(
                        f"Round {number} {status['state']}: {status['error']}", "The round's page has more."
                    )
                return status
            time.sleep(POLL_SECONDS)

    def _last_metrics(self, number: int) -> dict[tuple[str, str], float]:
        """Return the newest value of each metric, by kind of run and name."""
        rows = self.operator.json(f"{self.base}/rounds/{number}/metrics")["metrics"]
        return {(row["kind"], row["name"]): row["value"] for row in rows}  # in the order of runs and steps

    def _heldout(self) -> dict[str, float]:
        """Compare the newest policy with the first on held-out prompts that both answer; empty if they are the same."""
        questions: dict[int, str] = {}
        found: dict[int, dict[int, list[Response]]] = defaultdict(lambda: defaultdict(list))
        for line in self.operator.lines(f"{self.base}/samples.jsonl", split="heldout"):
            row = json.loads(line)
            questions[row["prompt_id"]] = row["prompt"][-1]["content"]
            response = Response(row["text"], row["n_tokens"], row["finish_reason"] != "length")
            found[row["model_version_id"]][row["prompt_id"]].append(response)
        if len(found) < 2:
            return {}
        first, newest = found[min(found)], found[max(found)]
        both = sorted(first.keys() & newest.keys())
        texts = [{prompt: [r.text for r in said[prompt]] for prompt in both} for said in (newest, first)]
        rate = win_rate(self.score, questions, *texts)
        if rate is None:
            return {}
        columns = {"win_rate": rate.rate, "win_rate_low": rate.low, "win_rate_high": rate.high}
        for said, own, prefix in ((newest, texts[0], ""), (first, texts[1], "first_")):
            responses = [response for prompt in both for response in said[prompt]]
            columns[f"{prefix}true"] = mean_score(self.score, questions, own)
            columns[f"{prefix}tokens"] = fmean(response.tokens for response in responses)
            columns[f"{prefix}finished"] = fmean(response.finished for response in responses)
        return columns
