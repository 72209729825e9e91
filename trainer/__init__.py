"""The worker: trains, samples and evaluates models. See recipes/ for the loops and algorithms/ for the formulas."""
