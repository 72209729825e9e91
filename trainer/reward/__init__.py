"""Reward models: their network, objective, cross-fitting, doubt and report."""
