"""Measure the seconds for the leaderboard of a project with 100,000 judgments: SQL, counting Markdown, and the fits.

`python -m benchmarks.leaderboard [JUDGMENTS]` fills a scratch database and ends with the line `seconds leaderboard X`.
"""

import sys
import tempfile
import time
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.orm import Session

from app.db import make_engine, make_session_factory
from app.insights.service import PEOPLE
from app.leaderboard import service
from app.postgres import database
from app.schema import migrate
from app.settings import Settings

POLICIES, LABELERS, PROMPTS = 12, 50, 2_000
# Responses of 400 to 2,800 characters, with headers, lists and bold passages.
PARAGRAPH = "Some words about it, with **one** of them bold, and a few more words to make it as long as lines are.\n"
FILL = (
    """
    INSERT INTO rubric (project_id, version, guideline, published_at)
    VALUES (:project, 1, 'Prefer the better answer.', now())
    """,
    "INSERT INTO user_account (name, kind) SELECT 'Labeler ' || i, 'person' FROM generate_series(1, :labelers) AS i",
    """
    INSERT INTO model_version (project_id, role, name, base)
    SELECT :project, 'policy', 'policy-' || i, 'none' FROM generate_series(1, :policies) AS i
    """,
    """
    INSERT INTO prompt (project_id, messages, digest, split)
    SELECT :project, '[{"role": "user", "content": "Which?"}]', md5(i::text), 'heldout'
    FROM generate_series(1, :prompts) AS i
    """,
    """
    INSERT INTO completion (prompt_id, model_version_id, text, n_tokens)
    SELECT p.id, m.id, E'# A title\n\n' || repeat(:paragraph, 4 + n) || repeat(E'- one\n', n), 100 + 25 * n
    FROM prompt AS p, model_version AS m, generate_series(1, 4) AS k, LATERAL (
        SELECT floor(random() * 20)::int + 0 * k AS n
    ) AS drawn
    WHERE p.project_id = :project AND m.project_id = :project
    """,
    """
    INSERT INTO comparison (
        project_id, prompt_id, completion_a_id, completion_b_id, rubric_id, purpose, overlap, selection
    )
    SELECT :project, a.prompt_id, a.id, b.id, r.id, 'human_eval', 1, '{"policy": "new_against_old"}'
    FROM completion AS a JOIN completion AS b ON b.prompt_id = a.prompt_id AND b.id > a.id
        AND b.model_version_id <> a.model_version_id, rubric AS r
    WHERE r.project_id = :project ORDER BY random() LIMIT :judgments
    """,
    """
    INSERT INTO judgment (comparison_id, labeler_id, rubric_id, preference, swapped)
    SELECT c.id, u.first + floor(random() * :labelers)::int, c.rubric_id, floor(random() * 7) - 3, random() < 0.5
    FROM comparison AS c, (SELECT max(id) - :labelers + 1 AS first FROM user_account) AS u WHERE project_id = :project
    """,
    "ANALYZE",
)


def fill(session: Session, judgments: int) -> int:
    """Add a project with this number of judgments between policies; return its id."""
    new = "INSERT INTO project (slug, name) VALUES ('board', 'Board') RETURNING id"
    project: int = session.execute(text(new)).scalar_one()
    values = {
        "project": project,
        "judgments": judgments,
        "labelers": LABELERS,
        "policies": POLICIES,
        "prompts": PROMPTS,
        "paragraph": PARAGRAPH,
    }
    for statement in FILL:
        session.execute(text(statement), {name: values[name] for name in values if f":{name}" in statement})
    session.commit()
    return project


if __name__ == "__main__":
    judgments = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    with (
        tempfile.TemporaryDirectory(prefix="pf-") as folder,
        database(Settings(home=Path(folder), database_url=None, _env_file=None)) as url,
    ):
        migrate(url)
        with make_session_factory(make_engine(url))() as session:
            project = fill(session, judgments)
        with make_session_factory(make_engine(url))() as session:
            began = time.perf_counter()
            found = service.matches(session, project, PEOPLE, judgments)
            read = time.perf_counter()
            board = service.leaderboard.board(found, list(service.queries.policies(session, project)))
            ended = time.perf_counter()
            print(f"read {len(found.a):,} judgments in {read - began:.2f} s")
            print(f"fitted {board.judgments:,} in {ended - read:.2f} s")
            print(f"seconds leaderboard {ended - began:.2f}")
