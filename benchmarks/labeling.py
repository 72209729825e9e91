"""Time a task and an answer with 10 thousand and with 1 million open comparisons: `python -m benchmarks.labeling`.

Two databases on one scratch server hold the same project in two sizes. Labelers of four kinds request a task and answer
it, alternating between the two databases, so that other load on the machine affects both equally:

- `fresh`: has judged nothing;
- `veteran`: has judged 20 thousand comparisons (half of the open ones in the small project, the others in another
  project), which wait for other people;
- `kept`: gets the comparisons reserved for the labeler's group before the open queue;
- `exhausted`: has judged all open comparisons; requests a task and gets the reason why there is none.

Times are in milliseconds in the service, including the commit; the database does not wait for its disk. The last lines
are `ratio next_task_1m_to_10k X`, `ratio submit_1m_to_10k X` and `seconds agreement_1m X`.
"""

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from sqlalchemy import Engine, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.orm import Session, sessionmaker

from app.db import make_engine, make_session_factory, sqlalchemy_url
from app.labeling import answers, assigning, outlook
from app.labeling.forms import LabelForm
from app.models import Project, User
from app.postgres import database
from app.schema import migrate
from app.settings import Settings
from benchmarks import agreement

SIZES = {"10k": 10_000, "1m": 1_000_000}
KINDS = ("fresh", "veteran", "kept", "exhausted")
VETERAN = 20_000
KEPT = 2_000
PER_PROMPT = 4

# Keys and counts are correct by construction, so `replica` skips triggers and foreign key checks, which take minutes.
FILL = (
    "SET session_replication_role = replica",
    "INSERT INTO project (slug, name, overlap) VALUES ('benchmark', 'Benchmark', 3), ('elsewhere', 'Elsewhere', 3)",
    """
    INSERT INTO rubric (project_id, version, guideline, published_at)
    SELECT id, 1, 'Prefer the better answer.', now() FROM project
    """,
    """
    INSERT INTO user_account (name, email)
    SELECT kind, kind || '@example.org' FROM unnest(CAST(:kinds AS text[])) AS kind
    """,
    "INSERT INTO project_member (project_id, user_id, roles) SELECT 1, id, '{labeler}' FROM user_account",
    "INSERT INTO labeler_group (project_id, name) VALUES (1, 'experts')",
    """
    INSERT INTO labeler_group_member (group_id, labeler_id)
    SELECT 1, id FROM user_account WHERE name = 'kept'
    """,
    """
    INSERT INTO prompt (project_id, messages, digest)
    SELECT 1, '[{"role": "user", "content": "Which of these is better, and why do you think so?"}]', md5(i::text)
    FROM generate_series(1, :prompts) AS i
    """,
    """
    INSERT INTO completion (prompt_id, text)
    SELECT id, repeat('This is what was said. ', 20) FROM prompt, generate_series(1, 4) ORDER BY id
    """,
    # The pairs of a prompt's four completions, with overlap 3.
    """
    INSERT INTO comparison (project_id, prompt_id, completion_a_id, completion_b_id, rubric_id, purpose, overlap)
    SELECT 1, prompt, 4 * (prompt - 1) + 1 + k, 4 * (prompt - 1) + 1 + (k + 1) % 4, 1, 'train', 3
    FROM (SELECT 1 + i / :per_prompt AS prompt, i % :per_prompt AS k FROM generate_series(0, :open - 1) AS i) AS pairs
    """,
    """
    INSERT INTO comparison
        (project_id, prompt_id, completion_a_id, completion_b_id, rubric_id, purpose, overlap, group_id)
    SELECT 1, 1 + i % :prompts, 1 + 4 * (i % :prompts), 2 + 4 * (i % :prompts), 1, 'train', 3, 1
    FROM generate_series(1, :kept) AS i
    """,
    """
    INSERT INTO comparison (project_id, prompt_id, completion_a_id, completion_b_id, rubric_id, purpose, overlap)
    SELECT 2, 1 + i % :prompts, 1 + 4 * (i % :prompts), 2 + 4 * (i % :prompts), 2, 'train', 3
    FROM generate_series(1, :veteran) AS i
    """,
    # Judgments follow each other by one second, as with people.
    """
    INSERT INTO judgment (comparison_id, labeler_id, rubric_id, preference, swapped, duration_ms, created_at)
    SELECT c.id, u.id, c.rubric_id, 1, false, 1000, now() - (2000000 - c.id) * interval '1 second'
    FROM user_account AS u, comparison AS c
    WHERE c.group_id IS NULL AND (
        u.name = 'exhausted' AND c.project_id = 1
        OR u.name = 'veteran' AND (
            c.project_id = 1 AND c.id <= least(:veteran, :open / 2)
            OR c.project_id = 2 AND c.id > :open + :kept + least(:veteran, :open / 2)
        )
    )
    """,
    """
    UPDATE comparison SET judgment_count = n
    FROM (SELECT comparison_id, count(*) AS n FROM judgment GROUP BY comparison_id) AS counted
    WHERE comparison_id = comparison.id
    """,
    "SET session_replication_role = DEFAULT",
)


class Side(NamedTuple):
    """A project of one size, and its labelers."""

    name: str
    sessions: sessionmaker[Session]
    project_id: int
    labelers: dict[str, int]


Times = dict[tuple[str, str, str], list[float]]  # milliseconds by (step, kind of labeler, size)


def prepare(url: str, name: str, size: int) -> Side:
    """Create a database with a project of this number of open comparisons."""
    home = make_engine(url)
    with home.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f'CREATE DATABASE "{name}"'))
        # Do not measure the disk.
        connection.execute(text(f'ALTER DATABASE "{name}" SET synchronous_commit = off'))
    home.dispose()
    own = make_url(sqlalchemy_url(url)).set(database=name).render_as_string(hide_password=False)
    migrate(own.replace("+psycopg", "", 1))
    engine = make_engine(own.replace("+psycopg", "", 1))
    numbers = {"open": size, "prompts": size // PER_PROMPT, "per_prompt": PER_PROMPT, "kept": KEPT, "veteran": VETERAN}
    started = time.perf_counter()
    with engine.begin() as connection:
        for statement in FILL:
            used = {key: value for key, value in numbers.items() if f":{key}" in statement}
            connection.execute(text(statement), used | ({"kinds": list(KINDS)} if ":kinds" in statement else {}))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))
    print(f"{name}: {size:,} open comparisons written in {time.perf_counter() - started:.0f} s", flush=True)
    sessions = make_session_factory(engine)
    with sessions() as session:
        project_id = session.scalars(select(Project.id).where(Project.slug == "benchmark")).one()
        labelers = {labeler.name: labeler.id for labeler in session.scalars(select(User))}
    return Side(name, sessions, project_id, labelers)


def timed(side: Side, work: Callable[[Session, Project, User], Any], kind: str) -> tuple[float, Any]:
    """Return the milliseconds of one transaction, as in a request: the two rows are loaded before the clock starts."""
    with side.sessions() as session:
        project = session.get_one(Project, side.project_id)
        labeler = session.get_one(User, side.labelers[kind])
        started = time.perf_counter()
        done = work(session, project, labeler)
        session.commit()
        return 1000 * (time.perf_counter() - started), done


def turn(side: Side, kind: str, times: Times) -> None:
    """Let one labeler take a task and answer it, or get the reason why there is none."""
    took, task = timed(side, assigning.next_task, kind)
    if kind == "exhausted":
        assert task is None, "there was nothing left for this labeler"
        took += timed(side, outlook.idle, kind)[0]
        times["next_task", kind, side.name].append(took)
        return
    assert task is not None, f"the queue ran dry for {kind}"
    times["next_task", kind, side.name].append(took)
    form = LabelForm(idempotency_key=uuid4(), rubric_id=task.rubric.id, preference=1)

    def submit(session: Session, project: Project, labeler: User) -> None:
        answers.submit(session, project, task.lease_id, labeler, form)

    took, _ = timed(side, submit, kind)
    times["submit", kind, side.name].append(took)


def measure(sides: Sequence[Side], rounds: int, warm: int) -> Times:
    times: Times = defaultdict(list)
    for n in range(warm + rounds):
        if n == warm:
            times.clear()
        for kind in KINDS:
            for side in sides if n % 2 else reversed(sides):
                turn(side, kind, times)
    return times


def report(times: Times) -> dict[str, float]:
    """Print the table of medians; return the ratio of each step over all labelers."""
    small, large = SIZES
    print(f"\n{'':28}{small:>10}{large:>10}{'ratio':>9}")
    pooled: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for step in ("next_task", "submit"):
        for kind in KINDS:
            medians = [statistics.median(times[step, kind, size]) for size in SIZES if (step, kind, size) in times]
            if medians:
                print(f"{step + ' ' + kind:28}{medians[0]:8.2f}ms{medians[1]:8.2f}ms{medians[1] / medians[0]:9.3f}")
                for size, median in zip(SIZES, medians, strict=True):
                    pooled[step][size].append(median)
    mean = statistics.geometric_mean
    return {step: mean(of[large]) / mean(of[small]) for step, of in pooled.items()}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=300, help="measured turns of each labeler in each project")
    parser.add_argument("--warm", type=int, default=30, help="turns of each labeler before the measured ones")
    parser.add_argument("--large", type=int, default=SIZES["1m"], help="open comparisons in the large project")
    parser.add_argument(
        "--agreement", type=int, default=1_000_000, help="judgments for the agreement table; 0 skips it"
    )
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="pf-") as folder:
        settings = Settings(home=Path(folder), database_url=None, _env_file=None)
        with database(settings) as url:
            sizes = SIZES | {"1m": options.large}
            sides = [prepare(url, name, size) for name, size in sizes.items()]
            ratios = report(measure(sides, options.rounds, options.warm))
            for side in sides:
                engine = side.sessions.kw["bind"]
                assert isinstance(engine, Engine)
                engine.dispose()
            lines = [f"ratio {step}_1m_to_10k {ratio:.3f}" for step, ratio in ratios.items()]
            if options.agreement:
                migrate(url)
                engine = make_engine(url)
                lines.append(f"seconds agreement_1m {agreement.measure(engine, options.agreement):.2f}")
                engine.dispose()
    print("\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
