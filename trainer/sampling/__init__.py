"""Responses of a policy, generated here or by a server."""
