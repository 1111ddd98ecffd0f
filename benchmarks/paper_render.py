"""The paper's table as Markdown and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

from benchmarks.claims import MARGIN

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def to_markdown(table: dict[str, Any]) -> str:
    arms, seeds = table["arms"], table["seeds"]
    first = next(iter(table["runs"][0]["arms"].values()))
    parts = [
        "# The paper's table at small scale",
        f"`make bench-paper`, {table['made_at'][:10]}, {table['machine']}, {table['seconds'] / 60:.0f} minutes. "
        f"{len(seeds)} seeds ({seeds[0]} to {seeds[-1]}), each with its own base checkpoints, labels, prompts and "
        f"sampling; avg@{first['k']} on {first['problems']:,} test problems a seed, read once. Intervals are 95 % t "
        "intervals over seeds.",
        "## Arms",
        "A control has the labels, prompts and updates of the stages that it stands in for; `direct GRPO` has the "
        "labels of both RL stages and their number of steps, its learning rate chosen on validation.",
        _arms({name: arm for name, arm in arms.items() if not name.endswith("_compute")}),
        _rates(table["runs"]),
        "## Claims",
        f'"A > B" is held when the whole interval lies above 0; "A >= B" when it lies above {-100 * MARGIN:g} point.',
        _claims(table["claims"], len(seeds)),
    ]
    matched = {name: arm for name, arm in arms.items() if name.endswith("_compute")}
    if matched:
        parts += [
            "## Controls matched in compute (FLOPs)",
            _arms(matched),
            _claims(table["claims_at_equal_compute"], len(seeds)),
        ]
    return "\n\n".join([*filter(None, parts), "## Gates", _gates(table), _settings(table)]) + "\n"


def _arms(arms: dict[str, Any]) -> str:
    rows = [
        [
            arm["label"],
            _accuracy(arm["accuracy"]),
            f"{arm['labels_used']:,.0f}",
            f"{arm['updates']:,.0f}",
            f"{arm['flops'] / 1e12:.2f}",
            f"{arm['seconds']:,.0f}",
        ]
        for arm in arms.values()
    ]
    return _table(["model", "accuracy, %", "labels", "student updates", "TFLOP", "seconds"], rows)


def _rates(runs: list[dict[str, Any]]) -> str:
    """What direct GRPO had to choose from, a row a seed."""
    tried = [one["learning_rate"] for one in runs[0]["direct_grpo_rates"]]
    if not tried:
        return ""
    rows = [
        [str(run["seed"])]
        + [
            f"**{one['avg_at_k']:.3f}**" if one["kept"] else f"{one['avg_at_k']:.3f}"
            for one in run["direct_grpo_rates"]
        ]
        for run in runs
    ]
    told = "Direct GRPO's learning rates, avg@k on validation; the one in bold was kept:"
    return f"{told}\n\n{_table(['seed', *(f'{rate:g}' for rate in tried)], rows)}"


def _accuracy(found: dict[str, Any]) -> str:
    if found["low"] is None:
        return f"{100 * found['mean']:.1f}"
    return f"{100 * found['mean']:.1f} [{100 * found['low']:.1f}, {100 * found['high']:.1f}]"


def _claims(claims: list[dict[str, Any]], seeds: int) -> str:
    rows = [
        [
            claim["name"],
            claim["text"],
            f"**{claim['verdict']}**",
            _points(claim["difference"]),
            f"{100 * min(claim['by_seed']):+.1f} … {100 * max(claim['by_seed']):+.1f}",
        ]
        for claim in claims
    ]
    return _table(["", "claim", "verdict", f"difference over {seeds} seeds, points", "smallest and largest"], rows)


def _points(found: dict[str, Any]) -> str:
    if found["low"] is None:
        return f"{100 * found['mean']:+.1f}"
    return f"{100 * found['mean']:+.1f} [{100 * found['low']:+.1f}, {100 * found['high']:+.1f}]"


def _gates(table: dict[str, Any]) -> str:
    rows = [
        [str(run["seed"]), gate["gate"].upper(), "holds" if gate["passed"] else "does not hold", gate["message"]]
        for run in table["runs"]
        for gate in run["gates"]
        if gate["arm"] == "workflow"
    ]
    return _table(["seed", "gate", "verdict", "measured"], rows)


def _settings(table: dict[str, Any]) -> str:
    return (
        f"All settings, every seed's figures and the {len(table['settings_tried'])} settings that were tried before "
        "these are in paper-table.json."
    )


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def draw(table: dict[str, Any], path: Path) -> None:
    """A bar for each arm with its interval, and a dot for each seed."""
    arms = list(table["arms"].items())[::-1]
    figure, axes = plt.subplots(figsize=(9, 0.42 * len(arms) + 1.2))
    for row, (name, arm) in enumerate(arms):
        found = arm["accuracy"]
        control = name not in (
            "base_teacher",
            "rl_teacher",
            "base_student",
            "warmup_student",
            "opd_student",
            "rl_student",
        )
        spread = 0.0 if found["low"] is None else found["high"] - found["mean"]
        axes.barh(row, 100 * found["mean"], xerr=100 * spread, color="#d9a071" if control else "#8fb3dd", capsize=3)
        dots = [100 * run["arms"][name]["avg_at_k"] for run in table["runs"]]
        axes.plot(dots, [row] * len(dots), "o", color="#333333", markersize=3, alpha=0.6)
        axes.text(103, row, f"{100 * found['mean']:.1f}", va="center", fontsize=9)
    axes.set_yticks(range(len(arms)), [arm["label"] for _, arm in arms])
    axes.set_ylim(-0.6, len(arms) - 0.4)
    axes.set_xlim(0, 112)
    axes.set_xlabel(f"accuracy, %, mean of {len(table['seeds'])} seeds (dots) with 95 % interval")
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
