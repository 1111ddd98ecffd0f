"""The report's pictures: accuracy per model with its interval, and how each stage went."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from s2d.report.document import Report

#: What is worth a look per kind of stage: (metric, axis label).
CURVES = {
    "teacher_rl": (("reward_mean", "reward"), ("groups_without_signal", "groups without signal")),
    "student_rl": (("reward_mean", "reward"), ("groups_without_signal", "groups without signal")),
    "direct_grpo": (("reward_mean", "reward"), ("groups_without_signal", "groups without signal")),
    "warmup": (("forward_kl", "KL(T‖S), nats/token"), ("reverse_kl", "KL(S‖T), nats/token")),
    "opd": (("reverse_kl", "KL(S‖T), nats/token"), ("forward_kl", "KL(T‖S), nats/token")),
}


def draw(report: Report, folder: Path) -> list[str]:
    """Write the pictures into `folder`; returns their names."""
    names = []
    if report.arms:
        _accuracy(report, folder / "accuracy.png")
        names.append("accuracy.png")
    if kinds := _drawn(report):
        _curves(report, kinds, folder / "curves.png")
        names.append("curves.png")
    return names


def _drawn(report: Report) -> dict[str, str]:
    """Stages with something to draw, and their kinds: a drill's have told nothing that is worth a look."""
    stages = [stage for stage in report.stages if stage.arm == "workflow" or stage.kind == "direct_grpo"]
    return {
        stage.id: stage.kind
        for stage in stages
        if any(metric in report.curves.get(stage.id, {}) for metric, _ in CURVES.get(stage.kind, ()))
    }


def _accuracy(report: Report, path: Path) -> None:
    arms = report.arms[::-1]
    figure, axes = plt.subplots(figsize=(8, 0.55 * len(arms) + 1.2))
    means = [100 * arm.avg_at_k for arm in arms]
    below = [100 * (arm.avg_at_k - arm.low) for arm in arms]
    above = [100 * (arm.high - arm.avg_at_k) for arm in arms]
    # The control arms stand apart from the workflow.
    colours = ["#b3622e" if arm.arm != "workflow" else "#2e6db3" for arm in arms]
    bars = axes.barh([arm.label for arm in arms], means, xerr=(below, above), color=colours, capsize=3)
    axes.bar_label(bars, labels=[f"{mean:.1f}" for mean in means], padding=6)
    axes.set_xlim(0, 112)
    axes.margins(y=0.01)
    axes.set_xlabel(f"avg@{arms[0].k} on {arms[0].problems} test problems, % (bars: 95 % interval)")
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def _curves(report: Report, kinds: dict[str, str], path: Path) -> None:
    figure, grid = plt.subplots(2, len(kinds), figsize=(3.2 * len(kinds), 5), squeeze=False)
    for column, (stage, kind) in enumerate(kinds.items()):
        for row, (metric, label) in enumerate(CURVES[kind]):
            axes = grid[row][column]
            points = report.curves[stage].get(metric, [])
            axes.plot([step for step, _ in points], [value for _, value in points], linewidth=1.2)
            axes.set_ylabel(label)
            axes.set_ylim(bottom=0)
            axes.spines[["top", "right"]].set_visible(False)
        grid[0][column].set_title(stage)
        grid[1][column].set_xlabel("step")
    _save(figure, path)


def _save(figure: plt.Figure, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
