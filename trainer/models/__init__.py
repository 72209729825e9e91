"""Language models: loading, adapters, forward passes over completions, checks and saving."""
