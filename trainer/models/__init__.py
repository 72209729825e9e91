"""Language models: loaded, given adapters, run on completions, checked and saved."""
