"""`python -m s2d.probe DEVICE THREADS`: the rates of one device, as JSON."""

from __future__ import annotations

import sys

from s2d.probe.measure import measure

if __name__ == "__main__":
    device, threads = sys.argv[1:]
    print(measure(device, int(threads)).model_dump_json())
