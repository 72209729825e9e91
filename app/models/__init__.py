"""SQLAlchemy tables, one noun per file. There are no relationships: queries join what they need."""

from app.models.agreement import AgreementTally
from app.models.base import Base
from app.models.comparison import Adjudication, Comparison, Judgment, Lease, QueuePlace, Ranking
from app.models.constitution import AIRevision
from app.models.data_import import DataImport
from app.models.demonstration import Demonstration, DemonstrationEvent, DemonstrationTask
from app.models.judge import Judge, JudgeAdmission, JudgeJudgment, SnapshotJudgeJudgment
from app.models.labeler import LabelerGroup, LabelerGroupMember, ProjectLabeler, Qualification
from app.models.member import ProjectMember
from app.models.monitor import MonitorReview
from app.models.playground import PlaygroundChat, PlaygroundTurn
from app.models.project import Project
from app.models.prompt import Completion, Prompt
from app.models.red_team import RedTeamAttempt
from app.models.round import (
    Metric,
    ModelVersion,
    Round,
    Run,
    Snapshot,
    SnapshotComparison,
    SnapshotDemonstration,
    SnapshotThumb,
)
from app.models.rubric import Rubric
from app.models.suite import Suite, SuiteResult, SuiteVersion
from app.models.thumb import Thumb
from app.models.user import AuditEvent, AuthSession, SigninFailure, SigninLink, User

__all__ = [
    "AIRevision",
    "Adjudication",
    "AgreementTally",
    "AuditEvent",
    "AuthSession",
    "Base",
    "Comparison",
    "Completion",
    "DataImport",
    "Demonstration",
    "DemonstrationEvent",
    "DemonstrationTask",
    "Judge",
    "JudgeAdmission",
    "JudgeJudgment",
    "Judgment",
    "LabelerGroup",
    "LabelerGroupMember",
    "Lease",
    "Metric",
    "ModelVersion",
    "MonitorReview",
    "PlaygroundChat",
    "PlaygroundTurn",
    "Project",
    "ProjectLabeler",
    "ProjectMember",
    "Prompt",
    "Qualification",
    "QueuePlace",
    "Ranking",
    "RedTeamAttempt",
    "Round",
    "Rubric",
    "Run",
    "SigninFailure",
    "SigninLink",
    "Snapshot",
    "SnapshotComparison",
    "SnapshotDemonstration",
    "SnapshotJudgeJudgment",
    "SnapshotThumb",
    "Suite",
    "SuiteResult",
    "SuiteVersion",
    "Thumb",
    "User",
]
