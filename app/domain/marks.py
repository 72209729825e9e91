"""The mark of the tags that separate material from instructions in a question to an AI."""

import hashlib
import json


def mark_of(*material: str) -> str:
    """Return the mark for tags around these texts: 16 hexadecimal digits.

    It depends on all of the material, so no part of it can write such a tag, and it is the same whenever the question
    is asked again.
    """
    return hashlib.sha256(json.dumps(material).encode()).hexdigest()[:16]
