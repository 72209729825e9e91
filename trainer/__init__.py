"""The worker: trains, samples and evaluates models. See recipes/ for the loops and algorithms/ for the formulas."""

import os

# Must be set before torch is loaded. By default, OpenMP threads spin while they wait for each other. If the web service
# and the database share the machine's cores, their work then waits for spinning threads: with three busy processes on
# two cores, the same matrix products took 2 to 3 times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
