"""The forms of judges."""

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, model_validator

from app.domain.alternative_annotator import EPSILON, Q
from app.form_fields import CleanLine, EmptyIsNone
from app.judges.keys import VARIABLE, is_sendable

MAX_NAME = 100
MAX_URL = 500
MOST = 5000  # comparisons of a run
Price = Annotated[Annotated[float, Field(ge=0, le=1_000_000, allow_inf_nan=False)] | None, EmptyIsNone]
What = Literal["shared", "evaluation", "open"]
WHAT: dict[What, str] = {
    "shared": "Comparisons that people judged, for admission: those of the most people first",
    "evaluation": "Comparisons that measure the newest round's policy",
    "open": "Train comparisons that nobody has judged",
}


def _address(url: str) -> str:
    try:
        parts = urlsplit(url)
        whole = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port or a bracket that is none
        whole = False
    if not whole or not url.isprintable() or " " in url:
        raise ValueError("not an address such as http://127.0.0.1:8001/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("an address without user, password, ? or #; the key has a field of its own")
    return url.rstrip("/")


def _variable(name: str | None) -> str | None:
    if name and not VARIABLE.fullmatch(name):
        raise ValueError("a name such as PREFLOOP_JUDGE_KEY or PREFLOOP_JUDGE_KEY_OPENAI")
    return name


class SettingsForm(BaseModel):
    """Settings that can change while the judge stays the same judge. An empty key keeps the stored one."""

    key_variable: Annotated[Annotated[str, Field(max_length=100)] | None, EmptyIsNone, AfterValidator(_variable)] = None
    key: CleanLine = Field("", max_length=4000)
    forget_key: bool = False
    prompt_price: Price = None
    completion_price: Price = None
    timeout_seconds: float = Field(60, ge=1, le=3600, allow_inf_nan=False)
    retries: int = Field(4, ge=0, le=10)
    concurrency: int = Field(4, ge=1, le=64)
    max_tokens: int = Field(512, ge=1, le=32_768)

    @model_validator(mode="after")
    def one_key(self) -> "SettingsForm":
        if self.key and self.key_variable:
            raise ValueError("give the key or the name of a variable, not both")
        if not is_sendable(self.key):
            raise ValueError("the key holds characters that no key has")
        return self


class JudgeForm(SettingsForm):
    name: Annotated[CleanLine, Field(min_length=1, max_length=MAX_NAME)]
    url: Annotated[CleanLine, Field(max_length=MAX_URL), AfterValidator(_address)]
    model: Annotated[CleanLine, Field(min_length=1, max_length=200)]


class RunForm(BaseModel):
    what: Annotated[list[What], BeforeValidator(lambda given: [given] if isinstance(given, str) else given)] = Field(
        ["shared"], min_length=1, max_length=3
    )
    most: int = Field(200, ge=1, le=MOST)


class AdmissionForm(BaseModel):
    epsilon: float = Field(EPSILON, ge=0, le=0.3, allow_inf_nan=False)
    q: float = Field(Q, gt=0, le=0.2, allow_inf_nan=False)
