"""The worker: it takes runs from the queue, executes their recipes and records the results."""
