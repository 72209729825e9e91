"""Measurements of a policy: figures by slice, comparison with the previous policy, and suites."""
