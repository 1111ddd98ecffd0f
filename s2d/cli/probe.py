"""`s2d probe`."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import typer

from s2d.cli.options import StateDir
from s2d.errors import S2DError

if TYPE_CHECKING:
    from s2d.plan.machine import Hardware, Rates


def probe(state_dir: StateDir = None) -> None:
    """Measure how fast this machine is, so that plans tell times for it. Takes about half a minute; leave it idle."""
    from s2d.cli.configuration import read_settings
    from s2d.cli.output import console, table
    from s2d.plan.hardware import detect
    from s2d.plan.machines import Machines

    machines, hardware = Machines.of_state(read_settings(state_dir=state_dir).state_dir), detect()
    rates = measured(hardware)
    kept = machines.keep_probe(hardware, rates)
    console().print(table(("", "measured"), _told(rates)))
    typer.echo(f"Plans for this machine take it from {kept}; the stages that run here correct it.")


def measured(hardware: Hardware) -> Rates:
    """Raises S2DError with what the probe said."""
    from s2d.plan.machine import Rates

    command = [sys.executable, "-m", "s2d.probe", hardware.device, str(hardware.cpu_threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = "\n".join(done.stderr.splitlines()[-5:])
        raise S2DError(f"The probe ended with status {done.returncode}; it needs the `train` extra. It said:\n{last}")
    return Rates.model_validate_json(done.stdout.splitlines()[-1])


def _told(rates: Rates) -> list[tuple[str, str]]:
    milli = {
        "decoding step": rates.decode_step_s,
        "decoding step, a layer": rates.decode_layer_s,
        "forward and backward": rates.micro_batch_s,
        "forward and backward, a layer": rates.micro_layer_s,
        "optimizer step": rates.step_s,
    }
    return [
        ("training", f"{rates.flops / 1e9:,.0f} GFLOP/s"),
        ("decoding", f"{rates.bytes / 1e9:,.1f} GB/s"),
        *((name, f"{1000 * seconds:,.2f} ms") for name, seconds in milli.items()),
        ("a stage's start", f"{rates.start_s:,.1f} s"),
        ("loading weights", f"{rates.load_bytes / 1e9:,.1f} GB/s"),
    ]
