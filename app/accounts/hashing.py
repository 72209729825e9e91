"""How many passwords are hashed at once."""

from collections.abc import AsyncIterator

from anyio import CapacityLimiter
from anyio.lowlevel import RunVar
from fastapi import Depends

# A password's hash takes 64 MB and a good part of a second, and visitors may ask for it.
HASHED_AT_ONCE = 2
_hashing: RunVar[CapacityLimiter] = RunVar("hashing")  # of the event loop


async def one_of_few() -> AsyncIterator[None]:
    """Lets a request that hashes a password wait for its turn, in none of the threads that serve everybody."""
    limiter = _hashing.get(None)
    if limiter is None:
        limiter = CapacityLimiter(HASHED_AT_ONCE)
        _hashing.set(limiter)
    async with limiter:
        yield


Hashes = Depends(one_of_few, scope="function")
