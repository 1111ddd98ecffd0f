"""`s2d passrates`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from s2d.errors import S2DError

#: Libraries that would draw bars of their own between our lines.
QUIET = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1"}


def passrates(
    plan: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="Plan file of `s2d plan --out`.")],
    file: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="The JSONL file it was made for.")],
    out: Annotated[Path, typer.Option(dir_okay=False, help="Write the pass rates here, for `s2d plan --evidence`.")],
    problems: Annotated[int, typer.Option(min=8, help="Labels of stage 1 to look at.")] = 64,
    samples: Annotated[int, typer.Option(min=2, max=64, help="Rollouts of each.")] = 8,
) -> None:
    """Draw rollouts of both base models on some of a plan's training labels: which of them could teach anything?

    Trains nothing, and looks at no label of validation or test. Plan again with `--evidence`.
    """
    from s2d.atomic import write_atomic
    from s2d.cli.output import console, table
    from s2d.plan.document import load_plan
    from s2d.plan.evidence import Evidence

    found = load_plan(plan.read_bytes())
    task = {"plan": found.model_dump(mode="json"), "file": str(file.absolute()), "problems": problems, "k": samples}
    evidence = Evidence.model_validate_json(_probe(task))
    write_atomic(out, evidence.model_dump_json(indent=1) + "\n")
    rows = [
        (
            name,
            f"{rates.avg:.1%} ± {rates.half_width:.1%}",
            f"{rates.never:.0%}",
            f"{rates.always:.0%}",
            f"{rates.mean_completion_tokens:.0f}",
        )
        for name, rates in (("teacher", evidence.teacher), ("student", evidence.student))
    ]
    header = ("", f"avg@{samples}", "never solved", "always solved", "tokens")
    console().print(table(header, rows))
    typer.echo(f"Of {evidence.teacher.problems} problems. Plan with it: s2d plan … --evidence {out}")


def _probe(task: dict[str, object]) -> str:
    """What the probe printed. Raises S2DError when it failed; it has told why."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "task.json"
        path.write_text(json.dumps(task))
        command = [sys.executable, "-m", "s2d.probe.passrates", str(path)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env={**os.environ, **QUIET})
    if done.returncode:
        raise S2DError(f"The rollouts ended with status {done.returncode}; the reason is above.")
    return done.stdout.splitlines()[-1]
