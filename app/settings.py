"""Settings: one object, read from the environment (and `.env`). The README's table is generated from it."""

import os
import secrets
from functools import cached_property
from ipaddress import ip_network
from pathlib import Path
from typing import NamedTuple

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class SamplingServer(NamedTuple):
    """An OpenAI-compatible server that samples. Without a `model`, it serves each model under its
    location's last part."""

    url: str
    model: str | None = None


TRACKERS = ("tensorboard", "mlflow", "wandb")


class Settings(BaseSettings):
    """Every field is an environment variable: `PREFLOOP_` and its name, or the given alias."""

    model_config = SettingsConfigDict(env_prefix="PREFLOOP_", env_file=".env", extra="ignore", populate_by_name=True)

    home: Path = Field(
        Path.home() / ".prefloop",
        description="Folder for all data on this machine: the embedded database, artifacts and the secret key.",
    )
    database_url: str | None = Field(
        None,
        validation_alias="DATABASE_URL",
        description="PostgreSQL to use, `postgresql://user:password@host/name`. Unset: an embedded one under the home.",
    )
    host: str = Field("127.0.0.1", description="Address the web service listens on.")
    port: int = Field(8000, ge=1, le=65535, description="Port the web service listens on.")
    public_url: str | None = Field(
        None, description="Address people reach the service at, for links it prints. Unset: built from host and port."
    )
    statement_seconds: float = Field(
        60,
        ge=0,
        description="Longest time that a page's statement may take in the database, in seconds; 0: no limit. Imports, "
        "exports, workers and commands have none.",
    )
    lock_seconds: float = Field(
        10,
        ge=0,
        description="Longest time that a page waits for rows that somebody else is changing, in seconds; 0: no limit.",
    )
    idle_seconds: float = Field(
        600,
        ge=0,
        description="Seconds after which PostgreSQL ends a transaction of the web service or of a worker in which "
        "nothing happens; 0: never. Such a transaction keeps others waiting.",
    )
    migration_lock_seconds: float = Field(
        5,
        ge=0,
        description="Longest time that an upgrade of the schema waits for a table in use, in seconds; 0: no limit. "
        "Whoever needs the table meanwhile waits too.",
    )
    secret_key: str | None = Field(
        None,
        description="Key that signs form tokens, one for all web processes. Unset: made once, kept in the home.",
    )
    secure_cookies: bool = Field(False, description="Send cookies over HTTPS only. Set it behind a TLS proxy.")
    trusted_proxies: str = Field(
        "127.0.0.1,::1",
        description="Addresses or networks of reverse proxies, separated by commas. Only their `X-Forwarded-For` and "
        "`X-Forwarded-Proto` are believed.",
    )
    session_days: int = Field(30, ge=1, description="Days a sign-in lasts.")
    link_days: int = Field(7, ge=1, description="Days an invitation link lasts.")
    artifacts: Path | None = Field(
        None,
        description="Folder of models and snapshots; several machines share it by mounting it. Unset: in the home.",
    )
    model: str = Field(
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        description="Base model of the starter project: a hub name, or the absolute path of a folder.",
    )
    model_folders: str = Field(
        "",
        description="Folders, separated by colons, below which admins may name models by absolute path. Unset: only "
        "the artifact folder and PREFLOOP_MODEL.",
    )
    trust_remote_code: bool = Field(
        False,
        description="Run the Python code that comes with a model. Only for models whose code you have read.",
    )
    checkpoint_seconds: float = Field(
        60, ge=0, description="Least seconds between two checkpoints of a training run; 0: one after every step."
    )
    checkpoints_kept: int = Field(2, ge=1, description="Newest checkpoints of a training run that are kept.")
    sampling_url: str | None = Field(
        None,
        description="OpenAI-compatible server (vLLM and others) that samples responses, up to and including `/v1`. "
        "Unset: the worker samples.",
    )
    sampling_model: str | None = Field(
        None,
        description="Name under which that server serves the model. Unset: the last part of the adapter's or model's "
        "location.",
    )
    sampling_key: str | None = Field(
        None, description="Key of the OpenAI-compatible server that samples, if there is one. Never stored with a run."
    )
    judge_hosts: str = Field(
        "",
        description="Hosts at which AI judges may be, separated by commas. Empty: any that the worker can reach. "
        "Variables whose names begin with `PREFLOOP_JUDGE_KEY` hold keys of judges, which go to listed hosts only: see "
        "docs/judges.md.",
    )
    trackers: str = Field(
        "tensorboard",
        description="Where metrics of runs also go, separated by commas: `tensorboard` (files in the artifact folder's "
        "`tensorboard`), `mlflow`, `wandb`. The last two need their packages and read their own variables. "
        "Empty: nowhere.",
    )
    max_upload_mb: int = Field(256, ge=1, description="Largest upload to import, in megabytes.")
    log_level: str = Field("info", description="debug, info, warning or error.")

    @field_validator("home", "artifacts")
    @classmethod
    def _of_the_user(cls, path: Path | None) -> Path | None:
        """Expand `~`, which `.env` files and some shells leave as it is."""
        return path and path.expanduser()

    @field_validator("trusted_proxies")
    @classmethod
    def _addresses(cls, value: str) -> str:
        """Refuse `*`, which would let anybody claim any address."""
        for each in value.split(","):
            if each.strip():
                ip_network(each.strip())
        return value

    @field_validator("model_folders")
    @classmethod
    def _absolute(cls, value: str) -> str:
        if any(not os.path.isabs(folder) for folder in value.split(os.pathsep) if folder):
            raise ValueError("each folder must be an absolute path")
        return value

    @field_validator("trackers")
    @classmethod
    def _known_trackers(cls, value: str) -> str:
        for each in value.split(","):
            if each.strip() and each.strip() not in TRACKERS:
                raise ValueError(f"{each.strip()} is none of {', '.join(TRACKERS)}")
        return value

    @property
    def allowed_judge_hosts(self) -> tuple[str, ...]:
        return tuple(each.strip().lower() for each in self.judge_hosts.split(",") if each.strip())

    @property
    def tracker_names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(each.strip() for each in self.trackers.split(",") if each.strip()))

    @property
    def outside_models(self) -> tuple[Path, ...]:
        """Folders outside the artifacts from which models are read: `model_folders`, and the folder of `model`."""
        named = [*self.model_folders.split(os.pathsep), self.model]
        return tuple(Path(folder) for folder in named if os.path.isabs(folder))

    @property
    def artifacts_root(self) -> Path:
        return (self.artifacts or self.home / "artifacts").absolute()

    @property
    def sampling_server(self) -> SamplingServer | None:
        return SamplingServer(self.sampling_url, self.sampling_model) if self.sampling_url else None

    @property
    def local_url(self) -> str:
        """Where the web service answers on this machine. If the host means all addresses, this is the
        loopback address."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    @property
    def url(self) -> str:
        """The address where people reach the service."""
        return (self.public_url or self.local_url).rstrip("/")

    @cached_property
    def signing_key(self) -> bytes:
        """The secret key's bytes; created on first use and stored in the home if none is set."""
        if self.secret_key:
            return self.secret_key.encode()
        path = self.home / "secret_key"
        if not path.exists():
            self.home.mkdir(parents=True, exist_ok=True)
            fresh = path.with_name(f"secret_key.{secrets.token_hex(4)}")
            fresh.touch(mode=0o600)
            fresh.write_text(secrets.token_hex(32))
            try:
                # A link, not a rename: if two processes start together, the first one's key stays.
                path.hardlink_to(fresh)
            except FileExistsError:
                pass
            finally:
                fresh.unlink()
        return path.read_text().encode()


def markdown_table() -> str:
    """Return the settings as the README shows them. `make docs` writes them there."""
    lines = ["| variable | default | what it is |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        variable = field.validation_alias if isinstance(field.validation_alias, str) else f"PREFLOOP_{name.upper()}"
        default = str(field.default).replace(str(Path.home()), "~") if field.default is not None else ""
        lines.append(f"| `{variable}` | {f'`{default}`' if default else ''} | {field.description} |")
    return "\n".join(lines)
