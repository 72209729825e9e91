"""Planted reward hacks: how early monitors see them, and how often they give an alarm in rounds that are clean.

`python -m benchmarks.hacks --help` says how to choose cells; docs/monitors.md has what came of it.
"""
