"""Run all comparisons: `python -m benchmarks [FILE ...]`. The last lines are `ratio NAME X`, one per comparison."""

import argparse
import subprocess
import sys

from benchmarks import training


def sampling(args: argparse.Namespace, model: str) -> list[str]:
    """Run the sampling benchmark in a separate process; return the line with its ratio."""
    command = [sys.executable, "-u", "-m", "benchmarks.sampling", model, *["--cpu-time"][: args.cpu_time]]
    lines = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            lines.append(line.strip())
    if process.returncode != 0:
        raise SystemExit(process.returncode)
    return [line for line in lines if line.startswith("ratio sampling_k4 ")]


if __name__ == "__main__":
    args = training.parsed()
    model = training.model_of(args)
    lines = training.main(args, model)
    if args.only is None:
        lines += sampling(args, model)
    print("\n".join(lines))
