"""Accelerations of the dense bridge against the fixed recipe, at equal compute: `python -m benchmarks.accelerations`.

For each seed: one base pair, one RL'd teacher and its rollouts, and from there one bridge for each variant and length.
The fixed recipe is the demo's (30 warmup and 40 OPD steps), shortened to a part of its steps: at its full length it
ends near 99 %, and nothing can be told apart. Its FLOPs are what each variant may spend; measuring C2, and trying
extrapolations, is counted. Judged by avg@4 on 1,000 validation problems that nothing else reads; the test split is not
touched.

Seeds run side by side, one thread each. With `--work` what was run there already is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.bridges import (
    GATE_PROMPTS,
    JUDGED,
    Bridge,
    K,
    Outcome,
    Shared,
    plan_for,
    prepare,
    prompt_tokens,
    run_bridge,
    steps,
)
from benchmarks.claims import interval
from s2d.demo import pretrain, settings

LENGTHS = (0.25, 0.5)
SEEDS = 3
WARMUP, OPD = settings.WARMUP["steps"], settings.OPD["steps"]
SEQUENCES = settings.BRIDGE["sequences_per_step"]
#: Full working takes 14 tokens, of the 20 that are allowed.
HALF, THIRD = 7 / settings.MAX_COMPLETION_TOKENS, 5 / settings.MAX_COMPLETION_TOKENS
C2_CHECK_EVERY, C2_LEAST = 5, 5
#: Passes of the warmup over its stored rollouts when the teacher has scored them once for all.
PASSES = 3


class Fixed:
    """The fixed recipe at one length, once it was run, and what follows from it for the variants."""

    def __init__(self, shared: Shared, length: float, folder: Path) -> None:
        self.warmup, self.opd = (max(1, round(length * steps)) for steps in (WARMUP, OPD))
        self.outcome = run_bridge(shared, Bridge(warmup=self.warm(), opd=steps(self.opd)), folder)
        self.prompt = SEQUENCES * prompt_tokens(shared.layout, plan_for(shared, {}))

    def warm(self, **changes: Any) -> dict[str, Any]:
        made: int = changes.pop("made", self.warmup)
        return {"max_steps": made, "check_every": made, **steps(made), **changes}

    def tokens(self, prefix: float = 1.0) -> float:
        """Expected tokens of an OPD step whose rollouts end after a part of the longest completion."""
        completions = self.outcome.opd_tokens_per_step - self.prompt
        return self.prompt + min(completions, SEQUENCES * prefix * settings.MAX_COMPLETION_TOKENS)

    def bridge(self, prefix: float = 1.0, *, both: bool = True, **options: Any) -> Bridge:
        """The options in OPD, and with `both` in the warmup, which then has the fixed recipe's part of the budget."""
        more = {"prefix_share": prefix, **options}
        opd = {**steps(self.opd), **more}
        if not both:
            return Bridge(warmup=self.warm(), opd=opd, budget=self.outcome.flops)
        made = round(self.warmup * self.tokens() / self.tokens(prefix))
        return Bridge(warmup=self.warm(made=made, **more), opd=opd, budget=self.outcome.flops)

    def adaptive(self, max_kl: float) -> Bridge:
        """Warmup until C2 holds, as long as the budget lasts; OPD takes the rest."""
        most = self.warmup + self.opd - 1
        more = {"steps": C2_LEAST, "max_steps": most, "check_every": C2_CHECK_EVERY, "save_every": most}
        c2 = {"max_kl": max_kl, "min_agreement": 0.0}
        return Bridge(warmup=self.warm(**more), opd=steps(self.opd), c2=c2, budget=self.outcome.flops)

    def mostly_warmup(self) -> Bridge:
        """As many warmup steps as the adaptive bridge may make, without looking: is it the looking that helps?"""
        return Bridge(warmup=self.warm(made=self.warmup + self.opd - 1), opd=steps(self.opd), budget=self.outcome.flops)

    def extrapolated(self) -> Bridge:
        opd = {**steps(self.opd), "extrapolate": [1.0, 2.0, 4.0]}
        return Bridge(warmup=self.warm(), opd=opd, budget=self.outcome.flops)

    def stored(self) -> Bridge:
        """The warmup reads the rollouts of as many steps three times, and the teacher reads them once."""
        parts = -(-self.warmup * SEQUENCES // 512)
        warm = self.warm(made=PASSES * self.warmup, score_once=True)
        return Bridge(warmup=warm, opd=steps(self.opd), budget=self.outcome.flops, parts=parts)


VARIANTS: dict[str, tuple[Callable[[Fixed], Bridge], float]] = {
    "half of the tokens": (lambda fixed: fixed.bridge(token_share=0.5), 1.0),
    "first half of each rollout, in OPD": (lambda fixed: fixed.bridge(prefix=HALF, both=False), HALF),
    "first third of each rollout, in OPD": (lambda fixed: fixed.bridge(prefix=THIRD, both=False), THIRD),
    "first half of each rollout, in both stages": (lambda fixed: fixed.bridge(prefix=HALF), HALF),
    "extrapolation": (Fixed.extrapolated, 1.0),
    "adaptive warmup, C2 at 0.5": (lambda fixed: fixed.adaptive(0.5), 1.0),
    "adaptive warmup, C2 at 0.25": (lambda fixed: fixed.adaptive(0.25), 1.0),
    "mostly warmup, not adaptive": (Fixed.mostly_warmup, 1.0),
    "stored teacher, 3 passes": (Fixed.stored, 1.0),
}
"""Name → (its bridge, the part of the longest completion that its rollouts have)."""


def row(seed: int, length: float, variant: str, outcome: Outcome, budget: float) -> dict[str, Any]:
    return {
        "seed": seed,
        "length": length,
        "variant": variant,
        "accuracy": outcome.accuracy,
        "flops": outcome.flops,
        "relative_flops": outcome.flops / budget,
        "seconds": outcome.seconds,
        "warmup_steps": outcome.warmup_steps,
        "opd_steps": outcome.opd_steps,
        "opd_tokens_per_step": outcome.opd_tokens_per_step,
        **outcome.data,
    }


def run_seed(seed: int, work: Path, lengths: Sequence[float]) -> list[dict[str, Any]]:
    """All variants at these lengths, in a process of its own; goes on where an earlier one of the same folder ended."""
    path = work / "rows.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    done = {(one["length"], one["variant"]) for one in rows}

    def keep(length: float, name: str, outcome: Outcome, budget: float) -> None:
        rows.append(row(seed, length, name, outcome, budget))
        path.write_text(json.dumps(rows))
        told = f"{outcome.accuracy:.3f}, {outcome.flops / budget:.2f} of the FLOPs"
        print(f"seed {seed} length {length:g} {name}: {told}", flush=True)

    shared = prepare(seed, base_pair(work / "pair", seed), work)
    for length in lengths:
        if {(length, name) for name in ("fixed", *VARIANTS)} <= done:
            continue
        fixed = Fixed(shared, length, work / "bridge")
        budget = fixed.outcome.flops
        if (length, "fixed") not in done:
            keep(length, "fixed", fixed.outcome, budget)
        for name, (bridge, prefix) in VARIANTS.items():
            if (length, name) not in done:
                keep(length, name, run_bridge(shared, bridge(fixed), work / "bridge", fixed.tokens(prefix)), budget)
    return rows


def base_pair(folder: Path, seed: int) -> Path:
    """The folder with teacher and student, pre-trained there if need be."""
    if not (folder / "student").exists():
        for recipe in (pretrain.TEACHER, pretrain.STUDENT):
            pretrain.build(recipe, folder, seed)
    return folder


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By length and variant: means over seeds, and the paired difference to the fixed recipe with its t interval."""
    found = []
    for length in LENGTHS:
        fixed = {one["seed"]: one["accuracy"] for one in rows if (one["length"], one["variant"]) == (length, "fixed")}
        for name in ("fixed", *VARIANTS):
            own = [one for one in rows if (one["length"], one["variant"]) == (length, name)]
            if not own:
                continue
            means = {key: fmean(one[key] for one in own) for key in (
                "accuracy", "relative_flops", "seconds", "warmup_steps", "opd_steps",
            )}  # fmt: skip
            gains = [one["accuracy"] - fixed[one["seed"]] for one in own]
            spreads = {"accuracy_half": half_width([one["accuracy"] for one in own]), "gain_half": half_width(gains)}
            gain = {"gain": fmean(gains), "gains": gains, "seeds": len(own)}
            found.append({"length": length, "variant": name, **means, **gain, **spreads})
    return found


def half_width(values: list[float]) -> float | None:
    """Half of the 95 % t interval of the mean; None for one value."""
    found = interval(values)
    return None if found.high is None else found.high - found.mean


def to_markdown(document: dict[str, Any]) -> str:
    lines = [
        "# Accelerations of the dense bridge at equal compute",
        "",
        f"`python -m benchmarks.accelerations`, {document['made_at'][:10]}, {document['machine']}. Seeds "
        f"{document['seeds']}, each with its own base pair, labels, prompts, RL'd teacher and rollouts. avg@{K} on "
        f"{JUDGED:,} validation problems, T 1. Equal compute: the FLOPs of the fixed recipe at that length "
        f"(`s2d/plan/flops.py`), C2 on {GATE_PROMPTS} prompts and tried extrapolations included. ± is half of the 95 % "
        "t interval over seeds; the difference is paired within seeds.",
    ]
    for length in LENGTHS:
        lines += ["", f"## {length:g} of the fixed recipe's {WARMUP} + {OPD} steps", "", *table(document, length)]
    return "\n".join(lines) + "\n"


def table(document: dict[str, Any], length: float) -> list[str]:
    head = ["variant", "avg@4", "difference to fixed", "by seed", "FLOPs", "seconds", "steps"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for one in document["summary"]:
        if one["length"] == length:
            by_seed = ", ".join(f"{gain:+.3f}" for gain in one["gains"])
            gain = "" if one["variant"] == "fixed" else f"{one['gain']:+.3f}{spread(one['gain_half'])}"
            cells = [
                one["variant"],
                f"{one['accuracy']:.3f}{spread(one['accuracy_half'])}",
                gain,
                "" if one["variant"] == "fixed" else by_seed,
                f"{one['relative_flops']:.2f}",
                f"{one['seconds']:.0f}",
                f"{one['warmup_steps']:.0f} + {one['opd_steps']:.0f}",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def spread(half: float | None) -> str:
    return "" if half is None else f" ± {half:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--work", type=Path, help="keep models and shared stages here, and go on with what is there")
    parser.add_argument("--lengths", type=float, nargs="+", choices=LENGTHS, default=LENGTHS)
    given = parser.parse_args()
    work: Path = given.work or Path(tempfile.mkdtemp(prefix="s2d-accelerations-"))
    print(f"Models and stages are in {work}; --work {work} goes on there.", flush=True)
    # Before torch is loaded, in the processes too.
    os.environ["OMP_NUM_THREADS"] = "1"
    workers = min(given.seeds, os.cpu_count() or 1)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        runs = [pool.submit(run_seed, seed, work / f"seed-{seed}", given.lengths) for seed in range(given.seeds)]
        rows = [one for run in runs for one in run.result()]
    document = {
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, no GPU",
        "seeds": list(range(given.seeds)),
        "summary": summary(rows),
        "rows": rows,
    }
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "accelerations.json").write_text(json.dumps(document, indent=1) + "\n")
    (given.out / "accelerations.md").write_text(to_markdown(document))
    if given.work is None:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
