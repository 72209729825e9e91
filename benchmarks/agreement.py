"""Measure the seconds for the agreement table of a project with a million judgments: SQL, coefficients and bootstrap.

`python -m benchmarks.agreement [JUDGMENTS]` fills a scratch database, prints the time for filling it, and ends with the
line `seconds agreement_1m X`.
"""

import sys
import tempfile
import time
from pathlib import Path

from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from app.db import make_engine, make_session_factory
from app.insights import service
from app.postgres import database
from app.schema import migrate
from app.settings import Settings

PER_COMPARISON = 3
LABELERS = 200

# One statement per table. Labelers mostly follow their comparison's leaning. On hard prompts they do so less often, and
# so do the last ten labelers.
FILL = (
    """
    INSERT INTO rubric (project_id, version, guideline, published_at, aspects)
    SELECT :project, version, 'Prefer the better answer.', now(),
        '[{"name": "factuality", "question": "Which is more accurate?"},
          {"name": "style", "question": "Which is better written?"}]'
    FROM generate_series(1, 3) AS version
    """,
    """
    INSERT INTO user_account (name, kind)
    SELECT 'Labeler ' || i, 'person' FROM generate_series(1, :labelers) AS i
    """,
    "INSERT INTO model_version (project_id, role, name, base) VALUES (:project, 'base', 'base', 'none')",
    """
    INSERT INTO round (project_id, number, state, algorithm, config, policy_before_id, reference_id)
    SELECT :project, number, 'done', 'dpo', '{}', m.id, m.id
    FROM generate_series(1, 10) AS number, model_version AS m WHERE m.project_id = :project
    """,
    """
    INSERT INTO prompt (project_id, messages, digest, domain, difficulty, safety_category, split)
    SELECT :project, '[{"role": "user", "content": "Which?"}]', md5(i::text), 'domain ' || floor(random() * 23),
        (ARRAY['easy', 'hard', 'adversarial'])[1 + floor(random() * 3)],
        CASE WHEN random() < 0.2 THEN 'category ' || floor(random() * 7) END,
        (ARRAY['train', 'train', 'heldout'])[1 + floor(random() * 3)]
    FROM generate_series(1, :comparisons) AS i
    """,
    """
    INSERT INTO completion (prompt_id, text)
    SELECT id, side FROM prompt, unnest(ARRAY['A', 'B']) AS side WHERE project_id = :project ORDER BY id, side
    """,
    """
    INSERT INTO comparison (
        project_id, prompt_id, completion_a_id, completion_b_id, rubric_id, round_id, purpose, overlap
    )
    SELECT :project, prompt_id, a, b,
        (ARRAY(SELECT id FROM rubric WHERE project_id = :project))[1 + 3 * n / :comparisons],
        (ARRAY(SELECT id FROM round WHERE project_id = :project))[1 + 10 * n / :comparisons],
        (ARRAY['train', 'train', 'train', 'human_eval'])[1 + n % 4], :per_comparison
    FROM (
        SELECT prompt_id, min(c.id) AS a, max(c.id) AS b, row_number() OVER (ORDER BY prompt_id) - 1 AS n
        FROM completion AS c JOIN prompt ON prompt.id = prompt_id WHERE project_id = :project GROUP BY prompt_id
    ) AS pair
    """,
    """
    INSERT INTO judgment (comparison_id, labeler_id, rubric_id, preference, aspects, created_at)
    SELECT id, labeler, rubric_id,
        CASE WHEN random() < noise THEN floor(random() * 7) - 3
            ELSE greatest(-3, least(3, leaning + floor(random() * 3) - 1)) END,
        jsonb_build_object('factuality', floor(random() * 3)::int - 1, 'style', sign(leaning)::int),
        now() - interval '26 weeks' * (1 - n / CAST(:comparisons AS float))
    FROM (
        SELECT c.id, rubric_id, c.n, u.id AS labeler, leaning,
            0.2 + 0.3 * (difficulty = 'hard')::int + 0.4 * (u.n > :labelers - 10)::int AS noise
        FROM (
            SELECT *, row_number() OVER (ORDER BY id) AS n, floor(random() * 7) - 3 AS leaning
            FROM comparison WHERE project_id = :project
        ) AS c
        JOIN prompt ON prompt.id = prompt_id
        CROSS JOIN generate_series(1, :per_comparison) AS k
        JOIN (
            SELECT id, row_number() OVER (ORDER BY id DESC) AS n FROM user_account ORDER BY id DESC LIMIT :labelers
        ) AS u ON u.n = 1 + (c.n * 31 + k * (1 + c.n % 60)) % :labelers
    ) AS wanted
    """,
    "ANALYZE",
)


def fill(session: Session, judgments: int) -> int:
    """Add a project with this number of generated judgments; return its id."""
    new = "INSERT INTO project (slug, name) VALUES ('agreement-' || gen_random_uuid(), 'Agreement') RETURNING id"
    project: int = session.execute(text(new)).scalar_one()
    values = {
        "project": project,
        "labelers": LABELERS,
        "per_comparison": PER_COMPARISON,
        "comparisons": -(-judgments // PER_COMPARISON),
    }
    for statement in FILL:
        session.execute(text(statement), {name: values[name] for name in values if f":{name}" in statement})
    session.commit()
    return project


def measure(engine: Engine, judgments: int = 1_000_000) -> float:
    """Return the seconds for the whole agreement table of a new project with this number of judgments.

    The project is not removed afterwards.
    """
    with make_session_factory(engine)() as session:
        project = fill(session, judgments)
    with make_session_factory(engine)() as session:
        began = time.perf_counter()
        table = service.table(session, project)
        seconds = time.perf_counter() - began
        assert table.whole.judgments >= judgments
    return seconds


if __name__ == "__main__":
    judgments = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    with (
        tempfile.TemporaryDirectory(prefix="pf-") as folder,
        database(Settings(home=Path(folder), database_url=None, _env_file=None)) as url,
    ):
        migrate(url)
        began = time.perf_counter()
        seconds = measure(make_engine(url), judgments)
        print(f"made {judgments:,} judgments in {time.perf_counter() - began - seconds:.0f} s")
        print(f"seconds agreement_1m {seconds:.2f}")
