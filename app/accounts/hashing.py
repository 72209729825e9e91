"""A limit on how many passwords are hashed at once."""

from collections.abc import AsyncIterator

from anyio import CapacityLimiter
from anyio.lowlevel import RunVar
from fastapi import Depends

# Hashing a password takes 64 MB and much of a second, and any visitor can trigger it.
HASHED_AT_ONCE = 2
_hashing: RunVar[CapacityLimiter] = RunVar("hashing")  # one limiter per event loop


async def one_of_few() -> AsyncIterator[None]:
    """Make a request that hashes a password wait for its turn, without occupying one of the shared threads."""
    limiter = _hashing.get(None)
    if limiter is None:
        limiter = CapacityLimiter(HASHED_AT_ONCE)
        _hashing.set(limiter)
    async with limiter:
        yield


Hashes = Depends(one_of_few, scope="function")
