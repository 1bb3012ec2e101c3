"""How soon the API answers while a job computes: GET /health/live, again and again.

    python benchmarks/responsiveness.py [--limit-ms 200]

The job is a small course by translation and rigid, in the worker process; its start, all its steps
and the writing of its results lie within the measurement.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

from support.course import make_course
from support.server import serving


def main() -> int:
    """Prints percentiles; fails beyond the limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit-ms", type=float, default=200.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        course = make_course(Path(name) / "course")
        with serving(Path(name) / "data") as server:
            server.send(course)
            propagation = server.ask(course)
            answers_ms: list[float] = []
            while server.job(propagation)["state"] not in ("done", "failed"):
                for _ in range(20):
                    start = time.perf_counter()
                    server.http.get("/health/live")
                    answers_ms.append((time.perf_counter() - start) * 1000)
                    time.sleep(0.005)
    cuts = statistics.quantiles(answers_ms, n=100)
    print(
        f"GET /health/live during a job, {len(answers_ms)} answers: "
        f"median {cuts[49]:.1f} ms, p99 {cuts[98]:.1f} ms, longest {max(answers_ms):.1f} ms"
    )
    return int(cuts[98] > arguments.limit_ms)


if __name__ == "__main__":
    sys.exit(main())
