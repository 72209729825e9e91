"""Plant reward hacks, and measure how early monitors detect them and how often they raise alarms in clean rounds.

`python -m benchmarks.hacks --help` describes how to choose cells; docs/monitors.md has the results.
"""
