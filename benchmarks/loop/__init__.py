"""Whole learning loops without the service: simulated labelers, the service's domain code, the trainer's recipes.

A cell is one loop: a method with its settings, a hidden preference, noise, a budget of judgments per round, a number of
rounds, and a seed. `python -m benchmarks.loop --help` describes how to choose cells; docs/learning.md describes the
measurements.
"""
