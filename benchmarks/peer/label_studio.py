"""Label Studio's side: gunicorn in a separate environment, and labelers who send the requests of its label stream.

The stream gets a task with the action `next_task`, and posts an annotation to the task. Labelers sign up with the form,
and their requests carry its cookies. Usage data is not sent anywhere. Label Studio's own settings leave out two search
indexes, because the embedded PostgreSQL lacks their extensions. This makes its answers slightly faster.
"""

import contextlib
import os
import random
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import text
from sqlalchemy.engine import URL

from app.db import make_engine
from benchmarks.peer.client import browser, checked
from benchmarks.peer.processes import free_port, run, served
from benchmarks.peer.sides import Plan, Side, new_database

HOME = Path(".benchmark") / "label-studio"  # its virtual environment; `make benchmark-peer` makes it
THREADS = 8  # of each process
BATCH = 500  # tasks of one import

CONFIG = """
<View>
  <Text name="prompt" value="$prompt"/>
  <Pairwise name="better" toName="first,second"/>
  <Text name="first" value="$first"/>
  <Text name="second" value="$second"/>
</View>
"""

OVER = """
    SELECT count(*) FROM (
        SELECT 1 FROM task_completion WHERE NOT was_cancelled GROUP BY task_id HAVING count(*) > :overlap
    ) AS over
"""
STORED = "SELECT id FROM task_completion WHERE NOT was_cancelled AND id = ANY(CAST(:ids AS bigint[]))"


class TheirLabeler:
    """A labeler of Label Studio. `project` is the id of the project they label in."""

    project: int
    asked = True  # every card needs its own request

    def __init__(self, http: httpx.Client, email: str, password: str) -> None:
        """Sign up with the form."""
        self.http, self.draw = http, random.Random(email)
        checked(http.get("/user/signup/"))
        form = {"csrfmiddlewaretoken": http.cookies["csrftoken"], "email": email, "password": password}
        checked(http.post("/user/signup/", data=form))
        self.json("GET", "/api/current-user/whoami")

    def next_card(self) -> Any:
        """Return the next task as JSON; None if the service says that there is no task."""
        query: dict[str, str | int] = {"id": "next_task", "project": self.project}
        response = self.http.post("/api/dm/actions/", params=query, json={}, headers=self._headers)
        return None if response.status_code == 404 else checked(response).json()

    def answer(self, card: Any) -> str:
        result = {
            "from_name": "better",
            "to_name": "first,second",
            "type": "pairwise",
            "value": {"selected": self.draw.choice(("left", "right"))},
        }
        sent = {"result": [result], "lead_time": 1.0}
        done = self.json("POST", f"/api/tasks/{card['id']}/annotations/?project={self.project}", json=sent)
        return str(done["id"])

    def json(self, method: str, url: str, **kwargs: Any) -> Any:
        return checked(self.http.request(method, url, headers=self._headers, **kwargs)).json()

    @property
    def _headers(self) -> dict[str, str]:
        return {"X-CSRFToken": self.http.cookies.get("csrftoken") or ""}


@contextlib.contextmanager
def label_studio(plan: Plan) -> Iterator[Side]:
    """Serve the pairs from `plan.processes` gunicorn workers."""
    url = new_database(plan.url, "label_studio")
    with contextlib.ExitStack() as stack:
        address, pid = stack.enter_context(_gunicorn(url, plan))
        password, labelers = secrets.token_hex(16), []
        for number in range(plan.labelers):
            http = stack.enter_context(browser(address))
            labelers.append(TheirLabeler(http, f"labeler{number}@example.org", password))
        project = fill(labelers[0], plan)
        for labeler in labelers:
            labeler.project = project
        engine = make_engine(url.render_as_string(hide_password=False), pool_size=1)
        stack.callback(engine.dispose)
        with engine.connect() as connection:
            found = connection.execute(text("SELECT overlap, count(*) FROM task GROUP BY overlap")).all()
            assert [tuple(row) for row in found] == [(plan.overlap, len(plan.pairs))], f"tasks by overlap: {found}"
        yield Side("Label Studio", labelers, engine, OVER, STORED, [pid])


def fill(admin: TheirLabeler, plan: Plan) -> int:
    """Create a project and import the pairs; return the project's id. `admin` must be the first account."""
    wanted = {"title": "Peer", "label_config": CONFIG, "maximum_annotations": plan.overlap}
    project = int(admin.json("POST", "/api/projects/", json=wanted)["id"])
    tasks = [
        {
            "prompt": "\n\n".join(message["content"] for message in pair.messages),
            "first": pair.response_a,
            "second": pair.response_b,
        }
        for pair in plan.pairs
    ]
    for start in range(0, len(tasks), BATCH):
        admin.json("POST", f"/api/projects/{project}/import", json=tasks[start : start + BATCH])
    return project


@contextlib.contextmanager
def _gunicorn(url: URL, plan: Plan) -> Iterator[tuple[str, int]]:
    """Migrate the database and serve it; yield the address and gunicorn's process id."""
    bin_ = (HOME / "bin").absolute()
    if not (bin_ / "gunicorn").exists():
        raise SystemExit(f"{HOME} does not contain Label Studio. Run `make benchmark-peer`, which installs it.")
    package = next((HOME / "lib").absolute().glob("python*/site-packages/label_studio"))
    host = url.query.get("host") or url.host or "localhost"
    environment = os.environ | {
        "DJANGO_SETTINGS_MODULE": "core.settings.label_studio",
        "DJANGO_DB": "default",
        "POSTGRE_HOST": str(host),
        "POSTGRE_PORT": str(url.port or 5432),
        "POSTGRE_USER": url.username or "postgres",
        "POSTGRE_PASSWORD": str(url.password or ""),
        "POSTGRE_NAME": url.database or "",
        "LABEL_STUDIO_BASE_DATA_DIR": str(plan.folder / "label-studio"),
        "SKIP_TRIGRAM_EXTENSION": "full",
        "SKIP_BTREE_GIN_EXTENSION": "full",
        "LOG_LEVEL": "ERROR",
        "DEBUG": "false",
        "COLLECT_ANALYTICS": "false",
        "LATEST_VERSION_CHECK": "false",
        "SENTRY_DSN": "",
        "FRONTEND_SENTRY_DSN": "",
    }
    environment.pop("PYTHONPATH", None)
    log = plan.folder / "label-studio.log"
    run([str(bin_ / "python"), "manage.py", "migrate", "--verbosity", "0"], environment, package, log)
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = [str(bin_ / "gunicorn"), "--bind", f"127.0.0.1:{port}", "--workers", str(plan.processes)]
    command += ["--threads", str(THREADS), "--timeout", "120", "core.wsgi:application"]
    with served(command, environment, package, log, f"{address}/health/") as pid:
        yield address, pid
