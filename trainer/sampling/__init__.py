"""Sampling of a policy's responses, on this machine or through a server."""
