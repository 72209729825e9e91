"""Forms that the data page sends."""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, Field

from app.datasets.export import Kind
from app.datasets.formats import FORMATS
from app.datasets.service import ImportOptions
from app.errors import InvalidInput
from app.form_fields import CleanLine


def _empty_is_none(value: object) -> object:
    return None if value == "" else value


class ImportForm(BaseModel):
    """The options beside the uploaded files. Empty means: detect it, or use the default."""

    format: Annotated[str | None, BeforeValidator(_empty_is_none)] = None
    source: Annotated[Annotated[CleanLine, Field(max_length=200)] | None, BeforeValidator(_empty_is_none)] = None
    heldout_percent: Annotated[float, Field(ge=0, le=100)] = 0.0
    split_by: Literal["prompt", "topic"] = "prompt"
    skip_invalid: bool = False
    ai_judge: bool = False
    previewed: Annotated[str, Field(max_length=64)] = ""  # fingerprint of the previewed files and options

    def options(self, max_bytes: int) -> ImportOptions:
        """Return the import options. max_bytes: limit on the files' size after unpacking."""
        if self.format is not None and self.format not in FORMATS:
            raise InvalidInput(f"There is no format {self.format}.", f"Formats are: {', '.join(FORMATS)}.")
        return ImportOptions(
            self.format,
            self.source,
            self.skip_invalid,
            self.heldout_percent / 100,
            self.split_by,
            self.ai_judge,
            max_bytes,
        )


class ExportQuery(BaseModel):
    kind: Kind = "preferences"
    split: Literal["all", "train", "heldout"] = "all"
    columns: Annotated[str, Field(max_length=100)] = ""
    pseudonyms: bool = False
    gzip: bool = False
