"""What a round would read, and whether that is enough: shown before its start, and decided when it is frozen."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from sqlalchemy.orm import Session

from app.artifacts import ArtifactStore
from app.domain.replay import Candidates, choose
from app.domain.replay import counts as counts_of
from app.errors import InvalidInput
from app.judges import service as judges
from app.judges import training_queries as judge_queries
from app.models import ModelVersion, Project, Round
from app.rounds import promotion, queries, snapshot_queries
from app.rounds.adoption import lost_files
from app.rounds.forms import RoundConfig
from app.rounds.snapshots import demonstration_counts, thumb_counts
from app.rounds.stages import MIN_PAIRS
from app.suites import queries as suite_queries

MIN_DEMONSTRATIONS = 20
FEW_PAIRS = 100  # below this a reward model learns little


class Available(NamedTuple):
    """The data that a project has, before settings choose among it. Costs O(comparisons + judgments)."""

    candidates: Candidates
    trained_rounds: list[int]
    undecided: int  # comparisons that are not decided yet
    approved: dict[str, int]  # approved demonstrations by split
    pending: int  # demonstrations that wait for review
    thumbs: dict[str, int]  # responses with thumbs, up and down
    new_judgments: int  # since the last round read
    by_judges: int  # comparisons that only admitted AI judges judged

    @classmethod
    def of(cls, session: Session, project: Project) -> "Available":
        return cls(
            candidates=snapshot_queries.candidates(session, project.id),
            trained_rounds=snapshot_queries.trained_rounds(session, project.id),
            undecided=queries.undecided(session, project.id),
            approved=snapshot_queries.count_approved(session, project.id),
            pending=queries.pending_demonstrations(session, project.id),
            thumbs=thumb_counts(*snapshot_queries.count_thumbs(session, project.id)),
            new_judgments=new_judgments(session, project),
            by_judges=judge_queries.count_for_training(session, project.id),
        )


def new_judgments(session: Session, project: Project, *, tried_too: bool = False) -> int:
    """Count judgments that a round may read and that were given since a round last read data.

    Args:
        tried_too: count from the last started round, even if it ended before it read anything.
    """
    last = _last_to_read(session, project, tried_too=tried_too)
    return queries.judgments_since(session, project.id, queries.read_at(session, last) if last else None)


def _last_to_read(session: Session, project: Project, *, tried_too: bool = False) -> Round | None:
    """Return the newest round that has read data or is about to. A round that ended before freezing read nothing."""
    rounds = queries.rounds(session, project.id)
    return next((each for each in rounds if tried_too or each.snapshot_id or each.state == "freezing"), None)


class Preview(NamedTuple):
    """What a round that starts now would read."""

    counts: dict[str, Any]  # the counts of its snapshot
    waiting: int  # comparisons not decided yet, or demonstrations not reviewed yet, so not read
    new_judgments: int
    thumbs: dict[str, int] | None  # numbers of responses with thumbs it would read, up and down; None: it reads none
    policy: ModelVersion | None
    active: Round | None
    warnings: tuple[str, ...]
    can_start: bool
    suites: int  # number of suites that both policies take
    suite_cases: int  # cases in all suites


def preview(session: Session, project: Project, config: RoundConfig, available: Available | None = None) -> Preview:
    """Return what a round with these settings would read. Winners come from the stored consensus.

    Args:
        available: the project's data; None: look it up.
    """
    there = available or Available.of(session, project)
    last = _last_to_read(session, project)
    policy = session.get(ModelVersion, project.policy_id) if project.policy_id else None
    active = queries.active_round(session, project.id)
    warnings = []
    if policy is None:
        warnings.append("The project has no model yet: a round needs a policy to improve.")
    elif waiting := promotion.waiting_policy(session, project):
        warnings.append(
            f"{waiting.name} still waits for people to prefer it. A new round starts from {policy.name} and ends "
            f"that wait: {waiting.name} then becomes the policy only if you adopt it."
        )
    demonstrations = demonstration_counts(there.approved, config.reading)
    counts: dict[str, Any]
    if config.algorithm == "sft":
        counts, unread = demonstrations, there.pending
    else:
        counts = counts_of(choose(there.candidates, there.trained_rounds, config.reading))
        if config.ai_share:
            counts["ai"] = min(there.by_judges, judges.allowed(config.ai_share, counts["train"]))
        unread = there.undecided
    lacking = lacks(config, counts, demonstrations["train"]) or too_low_a_rank(session, project, config)
    if lacking:
        warnings.append(str(lacking))
    if config.algorithm != "sft":
        warnings += _doubts(counts)
        if last and not there.new_judgments and not counts["new"]:
            warnings.append(
                f"No judgment was given since round {last.number}: a new round would train on the same data again."
            )
    suites, cases = suite_queries.count_cases(session, project.id)
    return Preview(
        counts=counts,
        waiting=unread,
        new_judgments=there.new_judgments,
        thumbs=there.thumbs if reads_thumbs(config) else None,
        policy=policy,
        active=active,
        warnings=tuple(warnings),
        can_start=policy is not None and active is None and lacking is None,
        suites=suites,
        suite_cases=cases,
    )


def reads_thumbs(config: RoundConfig) -> bool:
    return config.thumbs and getattr(config, "loss", None) == "kto"


def lacks(config: RoundConfig, counts: Mapping[str, Any], demonstrations: int) -> InvalidInput | None:
    """Return why this is too little to train on; None if it is enough.

    Args:
        counts: of the snapshot: `train`, and with comparisons `winners`.
        demonstrations: number of approved ones on train prompts, which PPO could mix in.
    """
    if config.algorithm == "sft":
        if counts["train"] < MIN_DEMONSTRATIONS:
            return InvalidInput(
                f"Fine-tuning needs {MIN_DEMONSTRATIONS} approved demonstrations on train prompts; "
                f"there are {counts['train']}.",
                "Import some with `prefloop import --kind demonstrations` or on the Data page.",
            )
        return None
    if counts["winners"] < MIN_PAIRS:
        left_out = ""
        if config.replay_share is not None or config.replay_rounds:
            left_out = " (replay leaves earlier ones out)"
        elif counts["train"] == config.train_limit:
            left_out = f" among the {config.train_limit} that “Train on at most” leaves"
        return InvalidInput(
            f"A round needs {MIN_PAIRS} decided comparisons with a winner to train on; "
            f"there are {counts['winners']}{left_out}.",
            "Label or import more comparisons, settle comparisons under review, or raise the limits.",
        )
    if config.ptx and not demonstrations:
        return InvalidInput(
            "There is no approved demonstration on a train prompt to mix into training.",
            "Import demonstrations, or turn off the setting “Demonstrations” (ptx).",
        )
    return None


def lacks_at_first_sight(session: Session, project: Project, config: RoundConfig) -> InvalidInput | None:
    """Check `lacks` quickly, however much data there is: at most the first `MIN_PAIRS` comparisons are looked at.

    The settings' limits may leave out more; the check when the round is frozen finds that.
    """
    approved = snapshot_queries.count_approved(session, project.id) if config.algorithm == "sft" or config.ptx else {}
    demonstrations = demonstration_counts(approved, config.reading)
    if config.algorithm == "sft":
        return lacks(config, demonstrations, 0)
    only_new = config.replay_share == 0
    winners = snapshot_queries.count_winners(session, project.id, MIN_PAIRS, only_new=only_new)
    return lacks(config, {"train": winners, "winners": winners}, demonstrations["train"])


def cannot_start(session: Session, project: Project, config: RoundConfig) -> InvalidInput | None:
    """Return why a round with these settings cannot start, by a quick check; None if it can."""
    if project.policy_id is None:
        return InvalidInput("The project has no model to improve.", "Choose a base model in the settings first.")
    return too_low_a_rank(session, project, config) or lacks_at_first_sight(session, project, config)


def lost_policy(session: Session, store: ArtifactStore, project: Project) -> InvalidInput | None:
    """Why no round can start from the project's policy and reference, if their files are gone; none if it can."""
    ids = {id_ for id_ in (project.policy_id, project.reference_id) if id_ is not None}
    found = (lost_files(store, session.get_one(ModelVersion, id_)) for id_ in sorted(ids))
    return next(filter(None, found), None)


def too_low_a_rank(session: Session, project: Project, config: RoundConfig) -> InvalidInput | None:
    """Return an error if the policy's adapter has a higher LoRA rank than the settings: a smaller one would lose what
    it has learned."""
    rank = queries.adapter_rank(session, project.policy_id)
    if not config.lora or rank is None or rank <= config.lora_rank:
        return None
    return InvalidInput(
        f"The policy's adapter has LoRA rank {rank}; rank {config.lora_rank} cannot hold what it has learned.",
        f"Set the LoRA rank to {rank} or more, or switch LoRA off to train full weights.",
    )


def _doubts(counts: dict[str, Any]) -> list[str]:
    """Return reasons why a round on these comparisons may disappoint."""
    doubts = []
    if MIN_PAIRS <= counts["winners"] < FEW_PAIRS:
        doubts.append(
            f"Only {counts['winners']} comparisons to train on. With fewer than {FEW_PAIRS}, expect weak results."
        )
    if counts["train"] and not counts["heldout"]:
        doubts.append("No held-out comparison is decided: only cross-fitting can measure the reward model's accuracy.")
    if counts["train"] and counts["ties"] * 2 > counts["train"] + counts["heldout"]:
        doubts.append("More than half of the comparisons are ties, which say little about what is better.")
    return doubts
