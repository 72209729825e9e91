"""Reward models: network, objective, cross-fitting, uncertainty penalty (doubt) and report."""
