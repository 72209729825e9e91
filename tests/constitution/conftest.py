"""The critic is the endpoint that judges' tests start."""

from tests.judges.conftest import endpoint

__all__ = ["endpoint"]
