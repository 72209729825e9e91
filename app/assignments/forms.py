"""The form with which an admin assigns comparisons, opens them to everybody, or changes their priority."""

import re
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, Field, StringConstraints

from app.errors import InvalidInput

MOST_IDS = 10_000
MAX_PRIORITY = 1_000_000
Blank = BeforeValidator(lambda value: None if value == "" else value)
Line = Annotated[str, StringConstraints(strip_whitespace=True, max_length=200)]


class AssignForm(BaseModel):
    """Which open comparisons to change, and how.

    Attributes:
        held: their current state: any, open to everybody, kept for somebody, or stuck (kept for people who cannot
            answer).
        slice, value: of their prompts. ids: numbers and ranges, such as `12, 20-25`. most: how many at most.
        owner: `everybody`, `labeler:ID` or `group:ID`; empty leaves it unchanged. priority: None leaves it unchanged.
    """

    held: Literal["", "everybody", "kept", "stuck"] = ""
    purpose: Literal["", "train", "heldout", "human_eval", "calibration"] = ""
    slice: Literal["", "domain", "difficulty", "safety_category"] = ""
    value: Line = ""
    ids: Annotated[str, Field(max_length=20_000)] = ""
    most: Annotated[Annotated[int, Field(ge=1)] | None, Blank] = None
    owner: Annotated[str, StringConstraints(pattern=r"^(|everybody|(labeler|group):\d{1,18})$")] = ""
    priority: Annotated[Annotated[int, Field(ge=-MAX_PRIORITY, le=MAX_PRIORITY)] | None, Blank] = None

    def numbers(self) -> list[int] | None:
        """Return the comparison numbers in `ids`; None if there are none.

        Raises:
            InvalidInput: a part is not a number or range, or there are too many.
        """
        found: set[int] = set()
        for part in re.split(r"[\s,;]+", self.ids.strip()):
            if not part:
                continue
            match = re.fullmatch(r"#?(\d{1,18})(?:-#?(\d{1,18}))?", part)
            if match is None:
                raise InvalidInput(f"“{part}” is neither a number nor a range.", "Write numbers like 12, 20-25.")
            low, high = int(match[1]), int(match[2] or match[1])
            if high - low >= MOST_IDS or len(found) + high - low >= MOST_IDS:
                raise InvalidInput(
                    f"The list has more than {MOST_IDS:,} numbers.", "Choose by purpose or slice instead."
                )
            found.update(range(low, high + 1))
        return sorted(found) or None
