"""The schema of the first release: tables, and triggers for rules that constraints cannot express.

This revision is frozen because databases already have it. To change anything, add a revision: see docs/upgrading.md.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "r0001"
down_revision = None

# Counters on comparison, updated by triggers of the rows that they count: only then does comparison's CHECK hold with
# concurrent writers.
COUNTERS = """
CREATE FUNCTION count_lease() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    change integer := (NEW.state = 'live')::integer;
BEGIN
    IF TG_OP = 'UPDATE' THEN
        change := change - (OLD.state = 'live')::integer;
    END IF;
    IF change <> 0 THEN
        UPDATE comparison SET lease_count = lease_count + change WHERE id = NEW.comparison_id;
    END IF;
    RETURN NULL;
END $$;

-- The one change that a judgment may see is becoming superseded; thousands may at once.
CREATE FUNCTION count_superseded_judgments() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE comparison SET judgment_count = judgment_count - gone.n
    FROM (SELECT comparison_id, count(*) AS n FROM new_rows GROUP BY comparison_id) AS gone
    WHERE comparison.id = gone.comparison_id;
    RETURN NULL;
END $$;

-- New judgments are counted by statement: an import inserts many on one comparison, and a row's every update is a copy.
CREATE FUNCTION count_new_judgments() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE comparison SET judgment_count = judgment_count + added.n
    FROM (
        SELECT comparison_id, count(*) AS n FROM new_rows WHERE superseded_at IS NULL GROUP BY comparison_id
    ) AS added
    WHERE comparison.id = added.comparison_id;
    RETURN NULL;
END $$;

-- Labelers remember how far they have come in a queue: what comes into it behind them must be found by its transaction.
CREATE FUNCTION mark_opened() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.opened_xid := pg_current_xact_id()::text::bigint;
    RETURN NEW;
END $$;

CREATE TRIGGER comparison_opened BEFORE UPDATE ON comparison
    FOR EACH ROW WHEN (
        NEW.state = 'open' AND NEW.offered AND NEW.judgment_count + NEW.lease_count < NEW.overlap
        AND (
            OLD.state <> 'open' OR NOT OLD.offered OR OLD.judgment_count + OLD.lease_count >= OLD.overlap
            OR NEW.judgment_count < OLD.judgment_count  -- whoever took their answer back may be asked again
            OR (OLD.priority, OLD.labeler_id, OLD.group_id)
                IS DISTINCT FROM (NEW.priority, NEW.labeler_id, NEW.group_id)
        )
    ) EXECUTE FUNCTION mark_opened();
CREATE TRIGGER lease_counted AFTER INSERT OR UPDATE OF state ON lease
    FOR EACH ROW EXECUTE FUNCTION count_lease();
CREATE TRIGGER superseded_judgments_counted AFTER UPDATE ON judgment
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION count_superseded_judgments();
CREATE TRIGGER new_judgments_counted AFTER INSERT ON judgment
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION count_new_judgments();
"""

# Publishing a rubric changes no comparison, however many are open. A comparison that nobody has begun takes the newest
# version when it is assigned, together with the other pairs of its ranking. Later labelers judge by the same version.
NEWEST_RUBRIC = """
CREATE FUNCTION take_newest_rubric() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    leased comparison%ROWTYPE;
    newest bigint;
BEGIN
    SELECT * INTO leased FROM comparison WHERE id = NEW.comparison_id;
    SELECT id INTO newest FROM rubric WHERE project_id = leased.project_id AND version IS NOT NULL
        ORDER BY version DESC LIMIT 1;
    IF leased.rubric_id <> newest AND leased.judgment_count = 0 AND leased.lease_count = 0
        AND NOT EXISTS (SELECT FROM judgment WHERE comparison_id = leased.id)
    THEN
        UPDATE comparison SET rubric_id = newest WHERE id = leased.id OR ranking_id = leased.ranking_id;
    END IF;
    RETURN NEW;
END $$;

CREATE TRIGGER lease_takes_newest_rubric BEFORE INSERT OR UPDATE OF state ON lease
    FOR EACH ROW WHEN (NEW.state = 'live') EXECUTE FUNCTION take_newest_rubric();
"""

# Live counts of answer patterns: see app.models.agreement.
TALLY = """
CREATE FUNCTION answer_code(kind text, preference smallint) RETURNS smallint LANGUAGE sql IMMUTABLE AS $$
    SELECT (9 * array_position('{person,imported,simulated,ai_judge}', kind) - 9 + preference + 4)::smallint
$$;

CREATE FUNCTION fold_tally(folded_project bigint) RETURNS void LANGUAGE sql AS $$
    WITH gone AS (DELETE FROM agreement_tally WHERE project_id = folded_project RETURNING answers, n)
    INSERT INTO agreement_tally (project_id, answers, n)
    SELECT folded_project, answers, sum(n) FROM gone GROUP BY answers HAVING sum(n) <> 0
$$;

-- After the trigger that counts judgments (by name), whose update of the comparison makes others wait: what is read
-- here is all there is. Inserted judgments were not there before; updated ones were, and now are superseded.
CREATE FUNCTION tally_judgments() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    added record;
BEGIN
    FOR added IN
        WITH changed AS (
            SELECT id, comparison_id FROM new_rows
            WHERE preference IS NOT NULL AND (superseded_at IS NULL) = (TG_OP = 'INSERT')
        ), units AS (
            SELECT comparison.project_id,
                array_agg(code ORDER BY code) FILTER (WHERE is_live) AS after,
                array_agg(code ORDER BY code) FILTER (WHERE is_live <> is_changed) AS before
            FROM (SELECT DISTINCT comparison_id FROM changed) AS touched
            JOIN comparison ON comparison.id = touched.comparison_id
            JOIN judgment ON judgment.comparison_id = comparison.id AND judgment.preference IS NOT NULL
            JOIN user_account ON user_account.id = judgment.labeler_id
            CROSS JOIN LATERAL (
                SELECT answer_code(user_account.kind, judgment.preference) AS code,
                    judgment.superseded_at IS NULL AS is_live,
                    judgment.id IN (SELECT id FROM changed) AS is_changed
            ) AS said
            WHERE comparison.state <> 'withdrawn' AND comparison.purpose <> 'repeat'
            GROUP BY comparison.id, comparison.project_id
        )
        INSERT INTO agreement_tally (project_id, answers, n)
        SELECT project_id, answers, sum(n)
        FROM units CROSS JOIN LATERAL (VALUES (after, 1), (before, -1)) AS moved (answers, n)
        WHERE answers IS NOT NULL
        GROUP BY project_id, answers HAVING sum(n) <> 0
        RETURNING id, project_id
    LOOP
        -- Whoever folds keeps others from folding, not from adding.
        IF added.id % 1000 = 0
            AND pg_try_advisory_xact_lock(hashtextextended('agreement_tally', added.project_id))
        THEN
            PERFORM fold_tally(added.project_id);
        END IF;
    END LOOP;
    RETURN NULL;
END $$;

CREATE FUNCTION tally_withdrawal() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO agreement_tally (project_id, answers, n)
    SELECT NEW.project_id, array_agg(code ORDER BY code),
        CASE WHEN NEW.state = 'withdrawn' OR NEW.purpose = 'repeat' THEN -1 ELSE 1 END
    FROM judgment
    JOIN user_account ON user_account.id = judgment.labeler_id
    CROSS JOIN LATERAL (SELECT answer_code(user_account.kind, judgment.preference) AS code) AS said
    WHERE judgment.comparison_id = NEW.id AND judgment.superseded_at IS NULL AND judgment.preference IS NOT NULL
    HAVING count(*) > 0;
    RETURN NULL;
END $$;

-- All that somebody has judged moves when their account becomes of another kind. New judgments of theirs wait for the
-- account (their foreign key asks for it), those of others for the comparisons.
CREATE FUNCTION tally_kind() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    judged bigint[];
BEGIN
    PERFORM FROM user_account WHERE id = NEW.id FOR UPDATE;
    SELECT array_agg(id) INTO judged FROM (
        SELECT id FROM comparison WHERE id IN (
            SELECT comparison_id FROM judgment WHERE labeler_id = NEW.id AND superseded_at IS NULL
        ) ORDER BY id FOR NO KEY UPDATE
    ) AS locked;
    INSERT INTO agreement_tally (project_id, answers, n)
    SELECT project_id, answers, sum(n)
    FROM (
        SELECT comparison.project_id,
            array_agg(code ORDER BY code) AS after,
            array_agg(former ORDER BY former) AS before
        FROM comparison
        JOIN judgment ON judgment.comparison_id = comparison.id AND judgment.preference IS NOT NULL
            AND judgment.superseded_at IS NULL
        JOIN user_account ON user_account.id = judgment.labeler_id
        CROSS JOIN LATERAL (
            SELECT answer_code(user_account.kind, judgment.preference) AS code,
                answer_code(
                    CASE WHEN user_account.id = NEW.id THEN OLD.kind ELSE user_account.kind END, judgment.preference
                ) AS former
        ) AS said
        WHERE comparison.id = ANY (judged) AND comparison.state <> 'withdrawn' AND comparison.purpose <> 'repeat'
        GROUP BY comparison.id, comparison.project_id
    ) AS units CROSS JOIN LATERAL (VALUES (after, 1), (before, -1)) AS moved (answers, n)
    GROUP BY project_id, answers HAVING sum(n) <> 0;
    RETURN NULL;
END $$;

CREATE TRIGGER new_judgments_tallied AFTER INSERT ON judgment
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION tally_judgments();
CREATE TRIGGER superseded_judgments_tallied AFTER UPDATE ON judgment
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION tally_judgments();
CREATE TRIGGER withdrawal_tallied AFTER UPDATE OF state, purpose ON comparison
    FOR EACH ROW WHEN (
        (OLD.state = 'withdrawn' OR OLD.purpose = 'repeat') <> (NEW.state = 'withdrawn' OR NEW.purpose = 'repeat')
    ) EXECUTE FUNCTION tally_withdrawal();
CREATE TRIGGER kind_tallied AFTER UPDATE OF kind ON user_account
    FOR EACH ROW WHEN (OLD.kind <> NEW.kind) EXECUTE FUNCTION tally_kind();
"""

APPEND_ONLY = """
CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only: % refused', TG_TABLE_NAME, TG_OP USING ERRCODE = 'restrict_violation';
END $$;

CREATE TRIGGER audit_event_append_only BEFORE UPDATE OR DELETE ON audit_event
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER rubric_published_is_final BEFORE UPDATE OR DELETE ON rubric
    FOR EACH ROW WHEN (OLD.version IS NOT NULL) EXECUTE FUNCTION refuse_change();
CREATE TRIGGER judgment_not_deleted BEFORE DELETE ON judgment
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
-- The one change a judgment may see: becoming superseded, once, for a reason.
CREATE TRIGGER judgment_append_only BEFORE UPDATE ON judgment
    FOR EACH ROW WHEN (
        OLD.superseded_at IS NOT NULL
        OR NEW.superseded_at IS NULL
        OR to_jsonb(OLD) - '{superseded_at,superseded_for}'::text[]
            IS DISTINCT FROM to_jsonb(NEW) - '{superseded_at,superseded_for}'::text[]
    ) EXECUTE FUNCTION refuse_change();
"""


def upgrade() -> None:
    op.create_table(
        "project",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("slug", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), server_default="", nullable=False),
        sa.Column("overlap", sa.BigInteger(), server_default="2", nullable=False),
        sa.Column("lease_minutes", sa.BigInteger(), server_default="15", nullable=False),
        sa.Column("review_threshold", sa.Float(), server_default="0.6", nullable=False),
        sa.Column("labeling", postgresql.JSONB(astext_type=sa.Text()), server_default="{}", nullable=False),
        sa.Column("fitted", postgresql.JSONB(astext_type=sa.Text()), server_default="{}", nullable=False),
        sa.Column("generation", postgresql.JSONB(astext_type=sa.Text()), server_default="{}", nullable=False),
        sa.Column("base_model_id", sa.BigInteger(), nullable=True),
        sa.Column("reference_id", sa.BigInteger(), nullable=True),
        sa.Column("policy_id", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("slug ~ '^[a-z0-9]+(-[a-z0-9]+)*$'", name=op.f("ck_project_slug_form")),
        sa.CheckConstraint("overlap BETWEEN 1 AND 100", name=op.f("ck_project_overlap_range")),
        sa.CheckConstraint("review_threshold BETWEEN 0 AND 1", name=op.f("ck_project_review_threshold_range")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_project")),
        sa.UniqueConstraint("slug", name=op.f("uq_project_slug")),
    )
    op.create_table(
        "user_account",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("email", sa.Text(), nullable=True),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), server_default="person", nullable=False),
        sa.Column("is_admin", sa.Boolean(), server_default="false", nullable=False),
        sa.Column("password_hash", sa.Text(), nullable=True),
        sa.Column("is_active", sa.Boolean(), server_default="true", nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "kind IN ('person', 'imported', 'simulated', 'ai_judge')", name=op.f("ck_user_account_kind_known")
        ),
        sa.CheckConstraint("email = lower(email)", name=op.f("ck_user_account_email_lower")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_user_account")),
        sa.UniqueConstraint("email", name=op.f("uq_user_account_email")),
    )
    op.create_table(
        "audit_event",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("actor_id", sa.BigInteger(), nullable=True),
        sa.Column("project_id", sa.BigInteger(), nullable=True),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("details", postgresql.JSONB(astext_type=sa.Text()), server_default="{}", nullable=False),
        sa.ForeignKeyConstraint(["actor_id"], ["user_account.id"], name=op.f("fk_audit_event_actor_id")),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name=op.f("fk_audit_event_project_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_event")),
    )
    op.create_index(op.f("ix_audit_event_project_id"), "audit_event", ["project_id"], unique=False)
    op.create_index(
        "ix_audit_event_comparison",
        "audit_event",
        [sa.literal_column("(details ->> 'comparison_id')")],
        unique=False,
        postgresql_where=sa.text("(details ->> 'comparison_id') IS NOT NULL"),
    )
    op.create_table(
        "auth_session",
        sa.Column("token_hash", sa.Text(), nullable=False),
        sa.Column("user_id", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["user_account.id"], name=op.f("fk_auth_session_user_id")),
        sa.PrimaryKeyConstraint("token_hash", name=op.f("pk_auth_session")),
    )
    op.create_index(op.f("ix_auth_session_user_id"), "auth_session", ["user_id"], unique=False)
    op.create_table(
        "model_version",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("project_id", sa.BigInteger(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("parent_id", sa.BigInteger(), nullable=True),
        sa.Column("run_id", sa.BigInteger(), nullable=True),
        sa.Column("base", sa.Text(), nullable=False),
        sa.Column("adapter", sa.Text(), nullable=True),
        sa.Column("digest", sa.Text(), nullable=True),
        sa.Column("card", postgresql.JSONB(astext_type=sa.Text()), server_default="{}", nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("role IN ('base', 'sft', 'reward', 'policy')", name=op.f("ck_model_version_role_known")),
        sa.ForeignKeyConstraint(["parent_id"], ["model_version.id"], name=op.f("fk_model_version_parent_id")),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name=op.f("fk_model_version_project_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_model_version")),
    )
    op.create_index("ix_model_version_project_role", "model_version", ["project_id", "role", "id"], unique=False)
    op.create_table(
        "prompt",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("project_id", sa.BigInteger(), nullable=False),
        sa.Column("messages", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("split", sa.Text(), server_default="train", nullable=False),
        sa.Column("domain", sa.Text(), server_default="", nullable=False),
        sa.Column("difficulty", sa.Text(), server_default="easy", nullable=False),
        sa.Column("safety_category", sa.Text(), nullable=True),
        sa.Column("source", sa.Text(), server_default="", nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("difficulty IN ('easy', 'hard', 'adversarial')", name=op.f("ck_prompt_difficulty_known")),
        sa.CheckConstraint(
            "split IN ('train', 'heldout', 'regression', 'calibration', 'withdrawn')",
            name=op.f("ck_prompt_split_known"),
        ),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name=op.f("fk_prompt_project_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_prompt")),
        sa.UniqueConstraint("project_id", "digest", name=op.f("uq_prompt_project_id_digest")),
    )
    op.create_index("ix_prompt_project_split", "prompt", ["project_id", "split"], unique=False)
    op.create_table(
        "rubric",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("project_id", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=True),
        sa.Column("guideline", sa.Text(), nullable=False),
        sa.Column("strengths", sa.BigInteger(), server_default="3", nullable=False),
        sa.Column("allow_tie", sa.Boolean(), server_default="true", nullable=False),
        sa.Column("allow_both_bad", sa.Boolean(), server_default="true", nullable=False),
        sa.Column("allow_cannot_judge", sa.Boolean(), server_default="true", nullable=False),
        sa.Column("rationale_rule", sa.Text(), server_default="optional", nullable=False),
        sa.Column("aspects", postgresql.JSONB(astext_type=sa.Text()), server_default="[]", nullable=False),
        sa.Column("flags", postgresql.JSONB(astext_type=sa.Text()), server_default="[]", nullable=False),
        sa.Column("examples", postgresql.JSONB(astext_type=sa.Text()), server_default="[]", nullable=False),
        sa.Column("quiz", postgresql.JSONB(astext_type=sa.Text()), server_default="[]", nullable=False),
        sa.Column("created_by", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("revision", sa.BigInteger(), server_default="1", nullable=False),
        sa.Column("edited_by", sa.BigInteger(), nullable=True),
        sa.Column("edited_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("published_by", sa.BigInteger(), nullable=True),
        sa.Column("published_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("quiz_of_version", sa.BigInteger(), nullable=True),
        sa.CheckConstraint("rationale_rule IN ('optional', 'required')", name=op.f("ck_rubric_rationale_rule_known")),
        sa.CheckConstraint("(version IS NULL) = (published_at IS NULL)", name=op.f("ck_rubric_published_has_version")),
        sa.CheckConstraint("strengths BETWEEN 1 AND 4", name=op.f("ck_rubric_strengths_range")),
        sa.ForeignKeyConstraint(["created_by"], ["user_account.id"], name=op.f("fk_rubric_created_by")),
        sa.ForeignKeyConstraint(["edited_by"], ["user_account.id"], name=op.f("fk_rubric_edited_by")),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name=op.f("fk_rubric_project_id")),
        sa.ForeignKeyConstraint(["published_by"], ["user_account.id"], name=op.f("fk_rubric_published_by")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rubric")),
        sa.UniqueConstraint("project_id", "version", name=op.f("uq_rubric_project_id_version")),
    )
    op.create_index("uq_rubric_one_draft", "rubric", ["project_id"], unique=True, postgresql_where="version IS NULL")
    op.create_table(
        "signin_failure",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("email", sa.Text(), nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_signin_failure")),
    )
    op.create_index("ix_signin_failure_address", "signin_failure", ["address", "at"], unique=False)
    op.create_index("ix_signin_failure_email", "signin_failure", ["email", "at"], unique=False)
    op.create_table(
        "signin_link",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("token_hash", sa.Text(), nullable=False),
        sa.Column("project_id", sa.BigInteger(), nullable=True),
        sa.Column("roles", postgresql.ARRAY(sa.Text()), server_default="{}", nullable=False),
        sa.Column("is_admin", sa.Boolean(), server_default="false", nullable=False),
        sa.Column("kind", sa.Text(), server_default="person", nullable=False),
        sa.Column("user_id", sa.BigInteger(), nullable=True),
        sa.Column("created_by", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("used_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "kind IN ('person', 'imported', 'simulated', 'ai_judge')", name=op.f("ck_signin_link_kind_known")
        ),
        sa.CheckConstraint("roles <@ ARRAY['labeler', 'admin', 'operator']", name=op.f("ck_signin_link_roles_known")),
        sa.CheckConstraint(
            "(project_id IS NULL) = (cardinality(roles) = 0)", name=op.f("ck_signin_link_roles_in_project")
        ),
        sa.ForeignKeyConstraint(["created_by"], ["user_account.id"], name=op.f("fk_signin_link_created_by")),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name=op.f("fk_signin_link_project_id")),
        sa.ForeignKeyConstraint(["user_id"], ["user_account.id"], name=op.f("fk_signin_link_user_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_signin_link")),
        sa.UniqueConstraint("token_hash", name=op.f("uq_signin_link_token_hash")),
    )
    op.create_index(op.f("ix_signin_link_project_id"), "signin_link", ["project_id"], unique=False)
    op.create_table(
        "snapshot",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("project_id", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("location", sa.Text(), nullable=False),
        sa.Column("counts", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("consensus", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name=op.f("fk_snapshot_project_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_snapshot")),
    )
    op.create_table(
        "round",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("project_id", sa.BigInteger(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("algorithm", sa.Text(), nullable=False),
        sa.Column("config", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("snapshot_id", sa.BigInteger(), nullable=True),
        sa.Column("ptx_snapshot_id", sa.BigInteger(), nullable=True),
        sa.Column("thumbs_snapshot_id", sa.BigInteger(), nullable=True),
        sa.Column("reference_id", sa.BigInteger(), nullable=False),
        sa.Column("policy_before_id", sa.BigInteger(), nullable=False),
        sa.Column("policy_after_id", sa.BigInteger(), nullable=True),
        sa.Column("reward_model_id", sa.BigInteger(), nullable=True),
        sa.Column("adopted", sa.Boolean(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("started_by", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "algorithm IN ('sft', 'dpo', 'on_policy_dpo', 'best_of_n', 'ppo', 'rloo', 'grpo')",
            name=op.f("ck_round_algorithm_known"),
        ),
        sa.CheckConstraint(
            "state IN ('freezing', 'reward', 'policy', 'sampling', 'evaluating', 'done', 'failed', 'cancelled')",
            name=op.f("ck_round_state_known"),
        ),
        sa.ForeignKeyConstraint(["policy_after_id"], ["model_version.id"], name=op.f("fk_round_policy_after_id")),
        sa.ForeignKeyConstraint(["policy_before_id"], ["model_version.id"], name=op.f("fk_round_policy_before_id")),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name=op.f("fk_round_project_id")),
        sa.ForeignKeyConstraint(["ptx_snapshot_id"], ["snapshot.id"], name=op.f("fk_round_ptx_snapshot_id")),
        sa.ForeignKeyConstraint(["thumbs_snapshot_id"], ["snapshot.id"], name=op.f("fk_round_thumbs_snapshot_id")),
        sa.ForeignKeyConstraint(["reference_id"], ["model_version.id"], name=op.f("fk_round_reference_id")),
        sa.ForeignKeyConstraint(["reward_model_id"], ["model_version.id"], name=op.f("fk_round_reward_model_id")),
        sa.ForeignKeyConstraint(["snapshot_id"], ["snapshot.id"], name=op.f("fk_round_snapshot_id")),
        sa.ForeignKeyConstraint(["started_by"], ["user_account.id"], name=op.f("fk_round_started_by")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_round")),
        sa.UniqueConstraint("project_id", "number", name=op.f("uq_round_project_id_number")),
    )
    op.create_index(
        "uq_round_one_active",
        "round",
        ["project_id"],
        unique=True,
        postgresql_where=sa.text("state NOT IN ('done', 'failed', 'cancelled')"),
    )
    op.create_table(
        "run",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("project_id", sa.BigInteger(), nullable=False),
        sa.Column("round_id", sa.BigInteger(), nullable=True),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("spec", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("state", sa.Text(), server_default="queued", nullable=False),
        sa.Column("cancel_requested", sa.Boolean(), server_default="false", nullable=False),
        sa.Column("attempts", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("attempts_since_checkpoint", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("progress_done", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("progress_total", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("progress_message", sa.Text(), server_default="", nullable=False),
        sa.Column("result", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("heartbeat_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "kind IN ('freeze', 'sample', 'reward', 'sft', 'dpo', 'on_policy_dpo', 'best_of_n', 'ppo', 'rloo', 'grpo', "
            "'evaluate', 'judge', 'red_team', 'playground')",
            name=op.f("ck_run_kind_known"),
        ),
        sa.CheckConstraint(
            "state IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')", name=op.f("ck_run_state_known")
        ),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name=op.f("fk_run_project_id")),
        sa.ForeignKeyConstraint(["round_id"], ["round.id"], name=op.f("fk_run_round_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_run")),
    )
    op.create_index("ix_run_project", "run", ["project_id", "id"], unique=False)
    op.create_index("ix_run_round", "run", ["round_id"], unique=False)
    op.create_index(
        "ix_run_unfinished", "run", ["state"], unique=False, postgresql_where=sa.text("state IN ('queued', 'running')")
    )
    op.create_table(
        "completion",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("prompt_id", sa.BigInteger(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("model_version_id", sa.BigInteger(), nullable=True),
        sa.Column("run_id", sa.BigInteger(), nullable=True),
        sa.Column("sample_index", sa.BigInteger(), nullable=True),
        sa.Column("source", sa.Text(), server_default="", nullable=False),
        sa.Column("finish_reason", sa.Text(), nullable=True),
        sa.Column("n_tokens", sa.BigInteger(), nullable=True),
        sa.Column("seed", sa.BigInteger(), nullable=True),
        sa.Column("sampling", postgresql.JSONB(astext_type=sa.Text()), server_default="{}", nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["model_version_id"], ["model_version.id"], name=op.f("fk_completion_model_version_id")
        ),
        sa.ForeignKeyConstraint(["prompt_id"], ["prompt.id"], name=op.f("fk_completion_prompt_id")),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name=op.f("fk_completion_run_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_completion")),
        sa.UniqueConstraint(
            "run_id", "prompt_id", "sample_index", name=op.f("uq_completion_run_id_prompt_id_sample_index")
        ),
    )
    op.create_index(op.f("ix_completion_model_version_id"), "completion", ["model_version_id"], unique=False)
    op.create_index("ix_completion_prompt_model", "completion", ["prompt_id", "model_version_id"], unique=False)
    op.create_table(
        "demonstration",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("project_id", sa.BigInteger(), nullable=False),
        sa.Column("prompt_id", sa.BigInteger(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("written", sa.Text(), nullable=True),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("author_id", sa.BigInteger(), nullable=True),
        sa.Column("source", sa.Text(), server_default="", nullable=False),
        sa.Column("state", sa.Text(), server_default="pending", nullable=False),
        sa.Column("rubric_id", sa.BigInteger(), nullable=True),
        sa.Column("completion_id", sa.BigInteger(), nullable=True),
        sa.Column("duration_ms", sa.BigInteger(), nullable=True),
        sa.Column("reviewer_id", sa.BigInteger(), nullable=True),
        sa.Column("review_note", sa.Text(), server_default="", nullable=False),
        sa.Column("reviewed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "state IN ('pending', 'approved', 'rejected', 'withdrawn')", name=op.f("ck_demonstration_state_known")
        ),
        sa.ForeignKeyConstraint(["author_id"], ["user_account.id"], name=op.f("fk_demonstration_author_id")),
        sa.ForeignKeyConstraint(["completion_id"], ["completion.id"], name=op.f("fk_demonstration_completion_id")),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name=op.f("fk_demonstration_project_id")),
        sa.ForeignKeyConstraint(["prompt_id"], ["prompt.id"], name=op.f("fk_demonstration_prompt_id")),
        sa.ForeignKeyConstraint(["reviewer_id"], ["user_account.id"], name=op.f("fk_demonstration_reviewer_id")),
        sa.ForeignKeyConstraint(["rubric_id"], ["rubric.id"], name=op.f("fk_demonstration_rubric_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_demonstration")),
        sa.UniqueConstraint("prompt_id", "digest", name=op.f("uq_demonstration_prompt_id_digest")),
    )
    op.create_index("ix_demonstration_author", "demonstration", ["author_id", "id"], unique=False)
    op.create_index("ix_demonstration_project_state", "demonstration", ["project_id", "state", "id"], unique=False)
    op.create_table(
        "demonstration_event",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("demonstration_id", sa.BigInteger(), nullable=False),
        sa.Column("actor_id", sa.BigInteger(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("note", sa.Text(), server_default="", nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "action IN ('approved', 'rejected', 'revised')", name=op.f("ck_demonstration_event_action_known")
        ),
        sa.ForeignKeyConstraint(["actor_id"], ["user_account.id"], name=op.f("fk_demonstration_event_actor_id")),
        sa.ForeignKeyConstraint(
            ["demonstration_id"], ["demonstration.id"], name=op.f("fk_demonstration_event_demonstration_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_demonstration_event")),
    )
    op.create_index(
        "ix_demonstration_event_demonstration", "demonstration_event", ["demonstration_id", "id"], unique=False
    )
    op.create_table(
        "demonstration_task",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("project_id", sa.BigInteger(), nullable=False),
        sa.Column("prompt_id", sa.BigInteger(), nullable=False),
        sa.Column("completion_id", sa.BigInteger(), nullable=True),
        sa.Column("labeler_id", sa.BigInteger(), nullable=True),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("skips", postgresql.JSONB(astext_type=sa.Text()), server_default="[]", nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "(labeler_id IS NULL) = (expires_at IS NULL)", name=op.f("ck_demonstration_task_held_until")
        ),
        sa.ForeignKeyConstraint(["completion_id"], ["completion.id"], name=op.f("fk_demonstration_task_completion_id")),
        sa.ForeignKeyConstraint(["labeler_id"], ["user_account.id"], name=op.f("fk_demonstration_task_labeler_id")),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name=op.f("fk_demonstration_task_project_id")),
        sa.ForeignKeyConstraint(["prompt_id"], ["prompt.id"], name=op.f("fk_demonstration_task_prompt_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_demonstration_task")),
    )
    op.create_index(op.f("ix_demonstration_task_prompt_id"), "demonstration_task", ["prompt_id"], unique=False)
    op.create_index("ix_demonstration_task_queue", "demonstration_task", ["project_id", "id"], unique=False)
    op.create_index("uq_demonstration_task_labeler", "demonstration_task", ["project_id", "labeler_id"], unique=True)
    op.create_table(
        "red_team_attempt",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("project_id", sa.BigInteger(), nullable=False),
        sa.Column("author_id", sa.BigInteger(), nullable=False),
        sa.Column("messages", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("domain", sa.Text(), server_default="", nullable=False),
        sa.Column("safety_category", sa.Text(), nullable=False),
        sa.Column("goal", sa.Text(), server_default="", nullable=False),
        sa.Column("model_version_id", sa.BigInteger(), nullable=False),
        sa.Column("run_id", sa.BigInteger(), nullable=True),
        sa.Column("answer", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("severity", sa.SmallInteger(), nullable=True),
        sa.Column("tags", postgresql.JSONB(astext_type=sa.Text()), server_default="[]", nullable=False),
        sa.Column("note", sa.Text(), server_default="", nullable=False),
        sa.Column("idempotency_key", sa.Uuid(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("rated_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("prompt_id", sa.BigInteger(), nullable=True),
        sa.Column("withdrawn_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(severity IS NULL) = (rated_at IS NULL)", name=op.f("ck_red_team_attempt_rated_has_severity")
        ),
        sa.CheckConstraint(
            "prompt_id IS NULL OR severity IS NOT NULL", name=op.f("ck_red_team_attempt_accepted_is_rated")
        ),
        sa.CheckConstraint("severity IS NULL OR answer IS NOT NULL", name=op.f("ck_red_team_attempt_rated_has_answer")),
        sa.CheckConstraint("severity BETWEEN 0 AND 3", name=op.f("ck_red_team_attempt_severity_range")),
        sa.ForeignKeyConstraint(["author_id"], ["user_account.id"], name=op.f("fk_red_team_attempt_author_id")),
        sa.ForeignKeyConstraint(
            ["model_version_id"], ["model_version.id"], name=op.f("fk_red_team_attempt_model_version_id")
        ),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name=op.f("fk_red_team_attempt_project_id")),
        sa.ForeignKeyConstraint(["prompt_id"], ["prompt.id"], name=op.f("fk_red_team_attempt_prompt_id")),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name=op.f("fk_red_team_attempt_run_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_red_team_attempt")),
        sa.UniqueConstraint("idempotency_key", name=op.f("uq_red_team_attempt_idempotency_key")),
    )
    op.create_index("ix_red_team_attempt_author", "red_team_attempt", ["author_id", "id"], unique=False)
    op.create_index("ix_red_team_attempt_project", "red_team_attempt", ["project_id", "id"], unique=False)
    op.create_index(op.f("ix_red_team_attempt_prompt_id"), "red_team_attempt", ["prompt_id"], unique=False)
    op.create_index(op.f("ix_red_team_attempt_run_id"), "red_team_attempt", ["run_id"], unique=False)
    op.create_table(
        "metric",
        sa.Column("run_id", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("slice", sa.Text(), server_default="", nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("value", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name=op.f("fk_metric_run_id")),
        sa.PrimaryKeyConstraint("run_id", "name", "slice", "step", name=op.f("pk_metric")),
    )
    op.create_table(
        "labeler_group",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("project_id", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name=op.f("fk_labeler_group_project_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_labeler_group")),
        sa.UniqueConstraint("project_id", "name", name=op.f("uq_labeler_group_project_id_name")),
    )
    op.create_table(
        "labeler_group_member",
        sa.Column("group_id", sa.BigInteger(), nullable=False),
        sa.Column("labeler_id", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["group_id"], ["labeler_group.id"], name=op.f("fk_labeler_group_member_group_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["labeler_id"], ["user_account.id"], name=op.f("fk_labeler_group_member_labeler_id")),
        sa.PrimaryKeyConstraint("group_id", "labeler_id", name=op.f("pk_labeler_group_member")),
    )
    op.create_index(op.f("ix_labeler_group_member_labeler_id"), "labeler_group_member", ["labeler_id"], unique=False)
    op.create_table(
        "project_labeler",
        sa.Column("project_id", sa.BigInteger(), nullable=False),
        sa.Column("labeler_id", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), server_default="active", nullable=False),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("changed_by", sa.BigInteger(), nullable=True),
        sa.Column("changed_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("reliability", sa.Float(), nullable=True),
        sa.Column("fitted", postgresql.JSONB(astext_type=sa.Text()), server_default="{}", nullable=False),
        sa.Column("counted_from", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("state IN ('active', 'paused', 'removed')", name=op.f("ck_project_labeler_state_known")),
        sa.ForeignKeyConstraint(["changed_by"], ["user_account.id"], name=op.f("fk_project_labeler_changed_by")),
        sa.ForeignKeyConstraint(["labeler_id"], ["user_account.id"], name=op.f("fk_project_labeler_labeler_id")),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name=op.f("fk_project_labeler_project_id")),
        sa.PrimaryKeyConstraint("project_id", "labeler_id", name=op.f("pk_project_labeler")),
    )
    op.create_index(op.f("ix_project_labeler_labeler_id"), "project_labeler", ["labeler_id"], unique=False)
    op.create_table(
        "project_member",
        sa.Column("project_id", sa.BigInteger(), nullable=False),
        sa.Column("user_id", sa.BigInteger(), nullable=False),
        sa.Column("roles", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("added_by", sa.BigInteger(), nullable=True),
        sa.Column("added_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "roles <@ ARRAY['labeler', 'admin', 'operator']", name=op.f("ck_project_member_roles_known")
        ),
        sa.CheckConstraint("cardinality(roles) > 0", name=op.f("ck_project_member_roles_some")),
        sa.ForeignKeyConstraint(["added_by"], ["user_account.id"], name=op.f("fk_project_member_added_by")),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name=op.f("fk_project_member_project_id")),
        sa.ForeignKeyConstraint(["user_id"], ["user_account.id"], name=op.f("fk_project_member_user_id")),
        sa.PrimaryKeyConstraint("project_id", "user_id", name=op.f("pk_project_member")),
    )
    op.create_index(op.f("ix_project_member_user_id"), "project_member", ["user_id"], unique=False)
    op.create_table(
        "qualification",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("rubric_id", sa.BigInteger(), nullable=False),
        sa.Column("labeler_id", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.BigInteger(), server_default="1", nullable=False),
        sa.Column("answers", postgresql.JSONB(astext_type=sa.Text()), server_default="{}", nullable=False),
        sa.Column("correct", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("passed", sa.Boolean(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(passed IS NULL) = (finished_at IS NULL)", name=op.f("ck_qualification_finished_has_outcome")
        ),
        sa.ForeignKeyConstraint(["labeler_id"], ["user_account.id"], name=op.f("fk_qualification_labeler_id")),
        sa.ForeignKeyConstraint(["rubric_id"], ["rubric.id"], name=op.f("fk_qualification_rubric_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_qualification")),
        sa.UniqueConstraint(
            "rubric_id", "labeler_id", "attempt", name=op.f("uq_qualification_rubric_id_labeler_id_attempt")
        ),
    )
    op.create_index(op.f("ix_qualification_labeler_id"), "qualification", ["labeler_id"], unique=False)
    op.create_table(
        "ranking",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("project_id", sa.BigInteger(), nullable=False),
        sa.Column("prompt_id", sa.BigInteger(), nullable=False),
        sa.Column("size", sa.SmallInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("size BETWEEN 3 AND 9", name=op.f("ck_ranking_size_range")),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name=op.f("fk_ranking_project_id")),
        sa.ForeignKeyConstraint(["prompt_id"], ["prompt.id"], name=op.f("fk_ranking_prompt_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ranking")),
    )
    op.create_index(op.f("ix_ranking_project_id"), "ranking", ["project_id"], unique=False)
    op.create_index(op.f("ix_ranking_prompt_id"), "ranking", ["prompt_id"], unique=False)
    op.create_table(
        "comparison",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("project_id", sa.BigInteger(), nullable=False),
        sa.Column("prompt_id", sa.BigInteger(), nullable=False),
        sa.Column("completion_a_id", sa.BigInteger(), nullable=False),
        sa.Column("completion_b_id", sa.BigInteger(), nullable=False),
        sa.Column("rubric_id", sa.BigInteger(), nullable=False),
        sa.Column("round_id", sa.BigInteger(), nullable=True),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("overlap", sa.BigInteger(), nullable=False),
        sa.Column("overlap_max", sa.BigInteger(), nullable=True),
        sa.Column("grown", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column("labeler_id", sa.BigInteger(), nullable=True),
        sa.Column("group_id", sa.BigInteger(), nullable=True),
        sa.Column("repeat_of_id", sa.BigInteger(), nullable=True),
        sa.Column("relabel_of_id", sa.BigInteger(), nullable=True),
        sa.Column("ranking_id", sa.BigInteger(), nullable=True),
        sa.Column("offered", sa.Boolean(), server_default="true", nullable=False),
        sa.Column("selection", postgresql.JSONB(astext_type=sa.Text()), server_default="{}", nullable=False),
        sa.Column("priority", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("gold", sa.SmallInteger(), nullable=True),
        sa.Column("external_id", sa.Text(), nullable=True),
        sa.Column("digest", sa.Text(), nullable=True),
        sa.Column("state", sa.Text(), server_default="open", nullable=False),
        sa.Column("judgment_count", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("lease_count", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column(
            "opened_xid",
            sa.BigInteger(),
            server_default=sa.text("(pg_current_xact_id())::text::bigint"),
            nullable=False,
        ),
        sa.Column("agreement", sa.Float(), nullable=True),
        sa.Column("consensus", sa.Float(), nullable=True),
        sa.Column("p_b", sa.Float(), nullable=True),
        sa.Column("p_tie", sa.Float(), nullable=True),
        sa.Column("reward_p_b", sa.Float(), nullable=True),
        sa.Column("reward_model_id", sa.BigInteger(), nullable=True),
        sa.Column("reward_trained", sa.Boolean(), server_default="false", nullable=False),
        sa.Column("review_reason", sa.Text(), nullable=True),
        sa.Column("flagged", sa.Boolean(), server_default="false", nullable=False),
        sa.Column("conflict_dismissed", sa.Boolean(), server_default="false", nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("settled_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("(gold IS NULL) OR purpose = 'calibration'", name=op.f("ck_comparison_gold_is_calibration")),
        sa.CheckConstraint(
            "purpose <> 'human_eval' OR coalesce(selection ->> 'policy', '') NOT IN "
            "('near_miss', 'uncertain', 'drts', 'delta_ucb')",
            name=op.f("ck_comparison_measured_at_random"),
        ),
        sa.CheckConstraint(
            "purpose <> 'repeat' OR repeat_of_id IS NOT NULL", name=op.f("ck_comparison_repeat_of_something")
        ),
        sa.CheckConstraint(
            "repeat_of_id IS NULL OR purpose IN ('repeat', 'calibration')",
            name=op.f("ck_comparison_repeated_for_measuring"),
        ),
        sa.CheckConstraint("grown BETWEEN 0 AND overlap - 1", name=op.f("ck_comparison_grown_range")),
        sa.CheckConstraint(
            "purpose IN ('train', 'heldout', 'calibration', 'human_eval', 'repeat')",
            name=op.f("ck_comparison_purpose_known"),
        ),
        sa.CheckConstraint(
            "review_reason IN ('split', 'unjudgeable', 'flagged', 'reward_model', 'requested')",
            name=op.f("ck_comparison_review_reason_known"),
        ),
        sa.CheckConstraint(
            "state IN ('open', 'settled', 'in_review', 'adjudicated', 'withdrawn')",
            name=op.f("ck_comparison_state_known"),
        ),
        sa.CheckConstraint("completion_a_id <> completion_b_id", name=op.f("ck_comparison_two_completions")),
        sa.CheckConstraint("gold BETWEEN -4 AND 4", name=op.f("ck_comparison_gold_range")),
        sa.CheckConstraint(
            "judgment_count + lease_count <= overlap", name=op.f("ck_comparison_overlap_never_exceeded")
        ),
        sa.CheckConstraint("labeler_id IS NULL OR group_id IS NULL", name=op.f("ck_comparison_kept_for_one")),
        sa.CheckConstraint(
            "overlap >= 1 AND (overlap <= 1000 OR gold IS NOT NULL)", name=op.f("ck_comparison_overlap_range")
        ),
        sa.CheckConstraint("overlap_max BETWEEN overlap AND 1000", name=op.f("ck_comparison_overlap_max_range")),
        sa.CheckConstraint("p_b BETWEEN 0 AND 1", name=op.f("ck_comparison_p_b_range")),
        sa.CheckConstraint("p_tie BETWEEN 0 AND 1", name=op.f("ck_comparison_p_tie_range")),
        sa.CheckConstraint("reward_p_b BETWEEN 0 AND 1", name=op.f("ck_comparison_reward_p_b_range")),
        sa.ForeignKeyConstraint(["completion_a_id"], ["completion.id"], name=op.f("fk_comparison_completion_a_id")),
        sa.ForeignKeyConstraint(["completion_b_id"], ["completion.id"], name=op.f("fk_comparison_completion_b_id")),
        sa.ForeignKeyConstraint(["group_id"], ["labeler_group.id"], name=op.f("fk_comparison_group_id")),
        sa.ForeignKeyConstraint(["labeler_id"], ["user_account.id"], name=op.f("fk_comparison_labeler_id")),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name=op.f("fk_comparison_project_id")),
        sa.ForeignKeyConstraint(["prompt_id"], ["prompt.id"], name=op.f("fk_comparison_prompt_id")),
        sa.ForeignKeyConstraint(["ranking_id"], ["ranking.id"], name=op.f("fk_comparison_ranking_id")),
        sa.ForeignKeyConstraint(["relabel_of_id"], ["comparison.id"], name=op.f("fk_comparison_relabel_of_id")),
        sa.ForeignKeyConstraint(["repeat_of_id"], ["comparison.id"], name=op.f("fk_comparison_repeat_of_id")),
        sa.ForeignKeyConstraint(["reward_model_id"], ["model_version.id"], name=op.f("fk_comparison_reward_model_id")),
        sa.ForeignKeyConstraint(["round_id"], ["round.id"], name=op.f("fk_comparison_round_id")),
        sa.ForeignKeyConstraint(["rubric_id"], ["rubric.id"], name=op.f("fk_comparison_rubric_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_comparison")),
        sa.UniqueConstraint("id", "rubric_id", name=op.f("uq_comparison_id_rubric_id")),
        sa.UniqueConstraint("project_id", "digest", name=op.f("uq_comparison_project_id_digest")),
    )
    op.create_index(
        "ix_comparison_available",
        "comparison",
        ["project_id", sa.literal_column("(- priority)"), "id"],
        unique=False,
        postgresql_where=sa.text(
            "state = 'open' AND offered AND judgment_count + lease_count < overlap AND gold IS NULL"
            " AND labeler_id IS NULL AND group_id IS NULL"
        ),
    )
    op.create_index(
        "ix_comparison_opened",
        "comparison",
        ["project_id", "opened_xid", "id"],
        unique=False,
        postgresql_where=sa.text(
            "state = 'open' AND offered AND judgment_count + lease_count < overlap AND gold IS NULL"
            " AND labeler_id IS NULL AND group_id IS NULL"
        ),
    )
    op.create_index(
        "ix_comparison_opened_in_group",
        "comparison",
        ["group_id", "opened_xid", "id"],
        unique=False,
        postgresql_where=sa.text(
            "state = 'open' AND offered AND judgment_count + lease_count < overlap AND gold IS NULL"
            " AND group_id IS NOT NULL"
        ),
    )
    op.create_index(
        "ix_comparison_known",
        "comparison",
        ["project_id", "id"],
        unique=False,
        postgresql_where=sa.text("gold IS NOT NULL"),
    )
    op.create_index(
        "ix_comparison_flagged",
        "comparison",
        ["project_id", "id"],
        unique=False,
        postgresql_where=sa.text(
            "(flagged OR state = 'in_review' AND review_reason = 'flagged') AND state <> 'withdrawn'"
        ),
    )
    op.create_index(
        "ix_comparison_requested",
        "comparison",
        ["project_id", "id"],
        unique=False,
        postgresql_where=sa.text("state = 'in_review' AND review_reason = 'requested'"),
    )
    op.create_index(
        "ix_comparison_in_disagreement",
        "comparison",
        ["project_id", sa.literal_column("coalesce(agreement, 0)"), "id"],
        unique=False,
        postgresql_where=sa.text(
            "state = 'in_review' AND coalesce(review_reason, 'split') NOT IN ('flagged', 'requested')"
        ),
    )
    op.create_index(
        "ix_comparison_in_conflict",
        "comparison",
        ["project_id", sa.literal_column("(reward_trained::integer + least(reward_p_b, 1 - reward_p_b))"), "id"],
        unique=False,
        postgresql_where=sa.text(
            "state IN ('settled', 'in_review') AND NOT conflict_dismissed AND ("
            "CASE WHEN abs(p_b - 0.5) < 5e-7 OR 1.5 * p_tie - greatest(p_b, 1 - p_b) > 5e-7 THEN 0"
            " ELSE sign(coalesce(p_b - 0.5, consensus)) END = 1 AND reward_p_b <= 0.2"
            " OR CASE WHEN abs(p_b - 0.5) < 5e-7 OR 1.5 * p_tie - greatest(p_b, 1 - p_b) > 5e-7 THEN 0"
            " ELSE sign(coalesce(p_b - 0.5, consensus)) END = -1 AND reward_p_b >= 0.8)"
        ),
    )
    op.create_index(
        "uq_comparison_relabel_of",
        "comparison",
        ["relabel_of_id"],
        unique=True,
        postgresql_where=sa.text("relabel_of_id IS NOT NULL"),
    )
    op.create_index(
        "ix_comparison_kept_for_group",
        "comparison",
        ["group_id", sa.literal_column("(- priority)"), "id"],
        unique=False,
        postgresql_where=sa.text(
            "state = 'open' AND offered AND judgment_count + lease_count < overlap AND gold IS NULL"
            " AND group_id IS NOT NULL"
        ),
    )
    op.create_index(
        "ix_comparison_kept_for_labeler",
        "comparison",
        ["labeler_id", "project_id", sa.literal_column("(- priority)"), "id"],
        unique=False,
        postgresql_where=sa.text(
            "state = 'open' AND offered AND judgment_count + lease_count < overlap AND gold IS NULL"
            " AND labeler_id IS NOT NULL"
        ),
    )
    op.create_index("ix_comparison_project_state", "comparison", ["project_id", "state"], unique=False)
    op.create_index(op.f("ix_comparison_prompt_id"), "comparison", ["prompt_id"], unique=False)
    op.create_index(
        "ix_comparison_ranking",
        "comparison",
        ["ranking_id"],
        unique=False,
        postgresql_where=sa.text("ranking_id IS NOT NULL"),
    )
    op.create_index(
        "ix_comparison_repeat_of",
        "comparison",
        ["repeat_of_id"],
        unique=False,
        postgresql_where=sa.text("repeat_of_id IS NOT NULL"),
    )
    op.create_index(op.f("ix_comparison_round_id"), "comparison", ["round_id"], unique=False)
    op.create_table(
        "snapshot_comparison",
        sa.Column("snapshot_id", sa.BigInteger(), nullable=False),
        sa.Column("comparison_id", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["comparison_id"], ["comparison.id"], name=op.f("fk_snapshot_comparison_comparison_id")
        ),
        sa.ForeignKeyConstraint(["snapshot_id"], ["snapshot.id"], name=op.f("fk_snapshot_comparison_snapshot_id")),
        sa.PrimaryKeyConstraint("snapshot_id", "comparison_id", name=op.f("pk_snapshot_comparison")),
    )
    op.create_index("ix_snapshot_comparison_comparison", "snapshot_comparison", ["comparison_id"], unique=False)
    op.create_table(
        "snapshot_demonstration",
        sa.Column("snapshot_id", sa.BigInteger(), nullable=False),
        sa.Column("demonstration_id", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["demonstration_id"], ["demonstration.id"], name=op.f("fk_snapshot_demonstration_demonstration_id")
        ),
        sa.ForeignKeyConstraint(["snapshot_id"], ["snapshot.id"], name=op.f("fk_snapshot_demonstration_snapshot_id")),
        sa.PrimaryKeyConstraint("snapshot_id", "demonstration_id", name=op.f("pk_snapshot_demonstration")),
    )
    op.create_index(
        "ix_snapshot_demonstration_demonstration", "snapshot_demonstration", ["demonstration_id"], unique=False
    )
    op.create_table(
        "adjudication",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("comparison_id", sa.BigInteger(), nullable=False),
        sa.Column("reviewer_id", sa.BigInteger(), nullable=False),
        sa.Column("verdict", sa.SmallInteger(), nullable=False),
        sa.Column("note", sa.Text(), server_default="", nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("verdict BETWEEN -4 AND 4", name=op.f("ck_adjudication_verdict_range")),
        sa.ForeignKeyConstraint(["comparison_id"], ["comparison.id"], name=op.f("fk_adjudication_comparison_id")),
        sa.ForeignKeyConstraint(["reviewer_id"], ["user_account.id"], name=op.f("fk_adjudication_reviewer_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_adjudication")),
        sa.UniqueConstraint("comparison_id", name=op.f("uq_adjudication_comparison_id")),
    )
    op.create_table(
        "lease",
        sa.Column("id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("comparison_id", sa.BigInteger(), nullable=False),
        sa.Column("labeler_id", sa.BigInteger(), nullable=False),
        sa.Column("swapped", sa.Boolean(), nullable=False),
        sa.Column("shown", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("state", sa.Text(), server_default="live", nullable=False),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "state IN ('live', 'submitted', 'expired', 'released', 'skipped', 'recused')",
            name=op.f("ck_lease_state_known"),
        ),
        sa.ForeignKeyConstraint(["comparison_id"], ["comparison.id"], name=op.f("fk_lease_comparison_id")),
        sa.ForeignKeyConstraint(["labeler_id"], ["user_account.id"], name=op.f("fk_lease_labeler_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_lease")),
    )
    op.create_index("ix_lease_comparison", "lease", ["comparison_id", "labeler_id"], unique=False)
    op.create_index("ix_lease_created", "lease", ["created_at"], unique=False)
    op.create_index(
        "ix_lease_given_back",
        "lease",
        ["labeler_id", "created_at"],
        unique=False,
        postgresql_where=sa.text("state IN ('released', 'expired')"),
    )
    op.create_index(
        "ix_lease_skipped",
        "lease",
        ["labeler_id", "created_at"],
        unique=False,
        postgresql_where=sa.text("state = 'skipped'"),
    )
    op.create_index(
        "ix_lease_live_expiry", "lease", ["expires_at"], unique=False, postgresql_where=sa.text("state = 'live'")
    )
    op.create_index(
        "ix_lease_live_labeler", "lease", ["labeler_id"], unique=False, postgresql_where=sa.text("state = 'live'")
    )
    op.create_index(
        "uq_lease_one_live",
        "lease",
        ["comparison_id", "labeler_id"],
        unique=True,
        postgresql_where=sa.text("state = 'live'"),
    )
    op.create_table(
        "playground_chat",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("project_id", sa.BigInteger(), nullable=False),
        sa.Column("owner_id", sa.BigInteger(), nullable=False),
        sa.Column("first_id", sa.BigInteger(), nullable=False),
        sa.Column("second_id", sa.BigInteger(), nullable=False),
        sa.Column("is_blind", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("first_id <> second_id", name=op.f("ck_playground_chat_two_models")),
        sa.ForeignKeyConstraint(["first_id"], ["model_version.id"], name=op.f("fk_playground_chat_first_id")),
        sa.ForeignKeyConstraint(["owner_id"], ["user_account.id"], name=op.f("fk_playground_chat_owner_id")),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name=op.f("fk_playground_chat_project_id")),
        sa.ForeignKeyConstraint(["second_id"], ["model_version.id"], name=op.f("fk_playground_chat_second_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_playground_chat")),
    )
    op.create_index("ix_playground_chat_project", "playground_chat", ["project_id", "id"], unique=False)
    op.create_table(
        "playground_turn",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("chat_id", sa.BigInteger(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("run_id", sa.BigInteger(), nullable=False),
        sa.Column("first", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("second", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("vote", sa.SmallInteger(), nullable=True),
        sa.Column("voted_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("comparison_id", sa.BigInteger(), nullable=True),
        sa.Column("idempotency_key", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("vote BETWEEN -1 AND 1", name=op.f("ck_playground_turn_vote_range")),
        sa.CheckConstraint(
            "vote IS NULL OR first IS NOT NULL AND second IS NOT NULL",
            name=op.f("ck_playground_turn_voted_has_answers"),
        ),
        sa.ForeignKeyConstraint(["chat_id"], ["playground_chat.id"], name=op.f("fk_playground_turn_chat_id")),
        sa.ForeignKeyConstraint(["comparison_id"], ["comparison.id"], name=op.f("fk_playground_turn_comparison_id")),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name=op.f("fk_playground_turn_run_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_playground_turn")),
        sa.UniqueConstraint("idempotency_key", name=op.f("uq_playground_turn_idempotency_key")),
    )
    op.create_index("ix_playground_turn_chat", "playground_turn", ["chat_id", "id"], unique=False)
    op.create_index(op.f("ix_playground_turn_comparison_id"), "playground_turn", ["comparison_id"], unique=False)
    op.create_index(op.f("ix_playground_turn_run_id"), "playground_turn", ["run_id"], unique=False)
    op.create_table(
        "judgment",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("comparison_id", sa.BigInteger(), nullable=False),
        sa.Column("labeler_id", sa.BigInteger(), nullable=False),
        sa.Column("rubric_id", sa.BigInteger(), nullable=False),
        sa.Column("lease_id", sa.Uuid(), nullable=True),
        sa.Column("preference", sa.SmallInteger(), nullable=True),
        sa.Column("both_bad", sa.Boolean(), server_default="false", nullable=False),
        sa.Column("aspects", postgresql.JSONB(astext_type=sa.Text()), server_default="{}", nullable=False),
        sa.Column("flags", postgresql.JSONB(astext_type=sa.Text()), server_default="[]", nullable=False),
        sa.Column("rationale", sa.Text(), server_default="", nullable=False),
        sa.Column("swapped", sa.Boolean(), nullable=True),
        sa.Column("duration_ms", sa.BigInteger(), nullable=True),
        sa.Column("idempotency_key", sa.Uuid(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("superseded_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("superseded_for", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "superseded_for IN ('edited', 'undone', 'removed', 'relabeled')",
            name=op.f("ck_judgment_superseded_for_known"),
        ),
        sa.CheckConstraint(
            "(superseded_at IS NULL) = (superseded_for IS NULL)", name=op.f("ck_judgment_superseded_for_something")
        ),
        sa.CheckConstraint("NOT both_bad OR preference = 0", name=op.f("ck_judgment_both_bad_is_a_tie")),
        sa.CheckConstraint("duration_ms >= 0", name=op.f("ck_judgment_duration_not_negative")),
        sa.CheckConstraint(
            "created_at BETWEEN '1970-01-01 00:00Z' AND '9000-01-01 00:00Z'", name=op.f("ck_judgment_created_at_range")
        ),
        sa.CheckConstraint("preference BETWEEN -4 AND 4", name=op.f("ck_judgment_preference_range")),
        sa.ForeignKeyConstraint(
            ["comparison_id", "rubric_id"],
            ["comparison.id", "comparison.rubric_id"],
            name=op.f("fk_judgment_comparison_id_rubric_id"),
        ),
        sa.ForeignKeyConstraint(["labeler_id"], ["user_account.id"], name=op.f("fk_judgment_labeler_id")),
        sa.ForeignKeyConstraint(["lease_id"], ["lease.id"], name=op.f("fk_judgment_lease_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_judgment")),
        sa.UniqueConstraint("idempotency_key", name=op.f("uq_judgment_idempotency_key")),
    )
    op.create_index("ix_judgment_comparison", "judgment", ["comparison_id", "labeler_id"], unique=False)
    op.create_index("ix_judgment_labeler", "judgment", ["labeler_id", "created_at"], unique=False)
    op.create_index(
        "uq_judgment_one_live",
        "judgment",
        ["comparison_id", "labeler_id"],
        unique=True,
        postgresql_where=sa.text("superseded_at IS NULL"),
    )
    op.create_table(
        "queue_place",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("labeler_id", sa.BigInteger(), nullable=False),
        sa.Column("project_id", sa.BigInteger(), nullable=False),
        sa.Column("group_id", sa.BigInteger(), nullable=True),
        sa.Column("priority", sa.BigInteger(), nullable=True),
        sa.Column("comparison_id", sa.BigInteger(), nullable=True),
        sa.Column("checked_xid", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("(priority IS NULL) = (comparison_id IS NULL)", name=op.f("ck_queue_place_whole_place")),
        sa.ForeignKeyConstraint(
            ["group_id"], ["labeler_group.id"], name=op.f("fk_queue_place_group_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["labeler_id"], ["user_account.id"], name=op.f("fk_queue_place_labeler_id")),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name=op.f("fk_queue_place_project_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_queue_place")),
        sa.UniqueConstraint(
            "labeler_id",
            "project_id",
            "group_id",
            name=op.f("uq_queue_place_labeler_id_project_id_group_id"),
            postgresql_nulls_not_distinct=True,
        ),
    )
    op.create_table(
        "thumb",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("project_id", sa.BigInteger(), nullable=False),
        sa.Column("completion_id", sa.BigInteger(), nullable=False),
        sa.Column("labeler_id", sa.BigInteger(), nullable=False),
        sa.Column("liked", sa.Boolean(), nullable=False),
        sa.Column("rationale", sa.Text(), server_default="", nullable=False),
        sa.Column("duration_ms", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("superseded_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("superseded_for", sa.Text(), nullable=True),
        sa.CheckConstraint("superseded_for IN ('edited', 'removed')", name=op.f("ck_thumb_superseded_for_known")),
        sa.CheckConstraint("duration_ms >= 0", name=op.f("ck_thumb_duration_not_negative")),
        sa.CheckConstraint(
            "(superseded_at IS NULL) = (superseded_for IS NULL)", name=op.f("ck_thumb_superseded_for_something")
        ),
        sa.ForeignKeyConstraint(["completion_id"], ["completion.id"], name=op.f("fk_thumb_completion_id")),
        sa.ForeignKeyConstraint(["labeler_id"], ["user_account.id"], name=op.f("fk_thumb_labeler_id")),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name=op.f("fk_thumb_project_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_thumb")),
    )
    op.create_index("ix_thumb_labeler", "thumb", ["labeler_id", "id"], unique=False)
    op.create_index("ix_thumb_project", "thumb", ["project_id", "id"], unique=False)
    op.create_index(
        "uq_thumb_one_live",
        "thumb",
        ["completion_id", "labeler_id"],
        unique=True,
        postgresql_where=sa.text("superseded_at IS NULL"),
    )
    op.create_table(
        "snapshot_thumb",
        sa.Column("snapshot_id", sa.BigInteger(), nullable=False),
        sa.Column("thumb_id", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["snapshot_id"], ["snapshot.id"], name=op.f("fk_snapshot_thumb_snapshot_id")),
        sa.ForeignKeyConstraint(["thumb_id"], ["thumb.id"], name=op.f("fk_snapshot_thumb_thumb_id")),
        sa.PrimaryKeyConstraint("snapshot_id", "thumb_id", name=op.f("pk_snapshot_thumb")),
    )
    op.create_index("ix_snapshot_thumb_thumb", "snapshot_thumb", ["thumb_id"], unique=False)
    op.create_table(
        "agreement_tally",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("project_id", sa.BigInteger(), nullable=False),
        sa.Column("answers", postgresql.ARRAY(sa.SmallInteger()), nullable=False),
        sa.Column("n", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name=op.f("fk_agreement_tally_project_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_agreement_tally")),
    )
    op.create_index("ix_agreement_tally_project", "agreement_tally", ["project_id"], unique=False)
    op.create_table(
        "data_import",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("project_id", sa.BigInteger(), nullable=False),
        sa.Column("actor_id", sa.BigInteger(), nullable=True),
        sa.Column("files", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("added", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("prompts", postgresql.ARRAY(sa.BigInteger()), nullable=False),
        sa.Column("comparisons", postgresql.ARRAY(sa.BigInteger()), nullable=False),
        sa.Column("judgments", postgresql.ARRAY(sa.BigInteger()), nullable=False),
        sa.Column("demonstrations", postgresql.ARRAY(sa.BigInteger()), nullable=False),
        sa.Column("thumbs", postgresql.ARRAY(sa.BigInteger()), nullable=False),
        sa.Column("overlaps", postgresql.JSONB(astext_type=sa.Text()), server_default="{}", nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("undone_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("undone_by", sa.BigInteger(), nullable=True),
        sa.CheckConstraint("undone_at IS NOT NULL OR undone_by IS NULL", name=op.f("ck_data_import_undone_when")),
        sa.ForeignKeyConstraint(["actor_id"], ["user_account.id"], name=op.f("fk_data_import_actor_id")),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name=op.f("fk_data_import_project_id")),
        sa.ForeignKeyConstraint(["undone_by"], ["user_account.id"], name=op.f("fk_data_import_undone_by")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_data_import")),
    )
    op.create_index("ix_data_import_project", "data_import", ["project_id", "id"], unique=False)
    # These tables refer to each other in cycles, so their foreign keys come last.
    op.create_foreign_key(op.f("fk_project_base_model_id"), "project", "model_version", ["base_model_id"], ["id"])
    op.create_foreign_key(op.f("fk_project_reference_id"), "project", "model_version", ["reference_id"], ["id"])
    op.create_foreign_key(op.f("fk_project_policy_id"), "project", "model_version", ["policy_id"], ["id"])
    op.create_foreign_key(op.f("fk_model_version_run_id"), "model_version", "run", ["run_id"], ["id"])
    connection = op.get_bind()
    for script in (COUNTERS, TALLY, NEWEST_RUBRIC, APPEND_ONLY):
        connection.connection.driver_connection.execute(script)  # without parameters, % is not a placeholder


def downgrade() -> None:
    """Not supported: restore a backup instead."""
