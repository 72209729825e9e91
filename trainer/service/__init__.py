"""The worker: takes runs from the queue, runs their recipes and records what came of them."""
