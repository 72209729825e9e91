"""Keys of judges' endpoints: named by a variable of the worker's environment, or stored sealed. No page shows one.

A stored key is encrypted (Fernet: AES-128 in CBC mode with an HMAC) by a key made from the service's secret key, so a
copy of the database alone holds no key of anybody.
"""

import base64
import hashlib
import hmac
import os
import re
from collections.abc import Collection

from cryptography.fernet import Fernet, InvalidToken

from app.errors import Unavailable
from app.models import Judge

# A page names the variable. Any other variable of the worker, such as the database's password, must not be sent.
VARIABLE = re.compile(r"PREFLOOP_JUDGE_KEY(_[A-Z0-9_]{1,60})?")


def _sealing(secret: bytes) -> Fernet:
    return Fernet(base64.urlsafe_b64encode(hmac.digest(secret, b"judge keys", hashlib.sha256)))


def seal(secret: bytes, key: str) -> str:
    return _sealing(secret).encrypt(key.encode()).decode()


def is_sendable(key: str) -> bool:
    """Return whether a key fits a header. Otherwise the error of sending it would quote the key."""
    return all(32 < ord(each) < 127 for each in key)


def key_of(secret: bytes, judge: Judge, hosts: Collection[str]) -> str:
    """The judge's key; empty if it has none.

    Args:
        hosts: hosts that the service allows for judges. A key from the environment is sent to no other host, because
            the operator who names its variable also names the address.

    Raises:
        Unavailable: the variable is not set or holds no key, no host is allowed to get it, or the stored key was sealed
            with another secret key.
    """
    if judge.key_variable:
        if not VARIABLE.fullmatch(judge.key_variable):
            raise Unavailable(
                f"{judge.key_variable} is no variable of a judge's key.", "Its name begins with PREFLOOP_JUDGE_KEY."
            )
        if not hosts:
            raise Unavailable(
                "Keys from the environment are sent only to hosts that PREFLOOP_JUDGE_HOSTS lists, and it lists none.",
                "Ask who runs the service to list the judge's host where the worker runs, or store a key of your own.",
            )
        key = os.environ.get(judge.key_variable, "").strip()
        if not key:
            raise Unavailable(
                f"The variable {judge.key_variable} is not set where the worker runs.",
                "Set it in the worker's environment and start the worker again.",
            )
        if not is_sendable(key):
            raise Unavailable(
                f"The variable {judge.key_variable} holds characters that no key has.",
                "Correct it in the worker's environment and start the worker again.",
            )
        return key
    if not judge.sealed_key:
        return ""
    try:
        return _sealing(secret).decrypt(judge.sealed_key.encode()).decode()
    except InvalidToken:
        raise Unavailable(
            "The stored key was sealed with another secret key of this service.",
            "Enter the key again, and give web services and workers the same PREFLOOP_SECRET_KEY.",
        ) from None
