"""Monitors of reward hacking on pages: what `app.domain.monitors` says of each round, and the worst examples."""
