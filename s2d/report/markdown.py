"""The report as Markdown: what the numbers say first, then how they came about."""

from __future__ import annotations

from s2d.report.document import ArmResult, Gate, Report


def to_markdown(report: Report, pictures: list[str]) -> str:
    parts = [
        "# s2d report",
        "" if report.complete else "The job ended before its evaluation; this is what there is.\n",
        _arms(report),
        *(f"![{name}]({name})\n" for name in pictures),
        _comparisons(report),
        _gates(report),
        _labels(report),
        _stages(report),
        _provenance(report),
    ]
    return "\n".join(part for part in parts if part) + "\n"


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def interval(arm: ArmResult) -> str:
    return f"{100 * arm.low:.1f} – {100 * arm.high:.1f} %"


def _table(title: str, head: list[str], rows: list[list[str]]) -> str:
    if not rows:
        return ""
    lines = [f"## {title}", "", _row(head), _row(["---"] * len(head)), *map(_row, rows), ""]
    return "\n".join(lines)


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _arms(report: Report) -> str:
    if not report.arms:
        return ""
    k, problems = report.arms[0].k, report.arms[0].problems
    head = ["model", f"avg@{k}", "95 % interval", f"pass@{k}", "labels", "student updates", "TFLOP", "seconds"]
    rows = [
        [
            arm.label,
            percent(arm.avg_at_k),
            interval(arm),
            percent(arm.pass_at_k[-1].mean),
            str(arm.labels_used),
            str(arm.updates),
            f"{arm.flops / 1e12:.3g}",
            f"{arm.seconds:.0f}",
        ]
        for arm in report.arms
    ]
    return _table(f"Accuracy on {problems} test problems, {k} completions each", head, rows)


def _comparisons(report: Report) -> str:
    labels = {arm.model: arm.label for arm in report.arms}
    rows = [
        [
            f"{labels[one.arm]} − {labels[one.baseline]}",
            f"{100 * one.gain:+.1f} points",
            f"{100 * one.low:+.1f} … {100 * one.high:+.1f}",
        ]
        for one in report.comparisons
    ]
    return _table("Paired differences on the same problems", ["difference", "mean", "95 % interval"], rows)


def _gates(report: Report) -> str:
    rows = [
        [f"{gate.gate.upper()} ({gate.stage})", _verdict(gate.passed), _decided(gate), gate.message]
        for gate in report.gates
    ]
    return "\n".join([_table("Gates", ["gate", "verdict", "the job", "measured"], rows), _checks(report)])


def _verdict(passed: bool) -> str:
    return "holds" if passed else "does not hold"


def _decided(gate: Gate) -> str:
    """What the job did, and for how long it waited for the gate."""
    told = gate.decided or "not told"
    if len(gate.checks) < 2:
        return told
    return f"{told}; warmup prolonged from {gate.checks[0].step} to {gate.checks[-1].step} steps"


def _checks(report: Report) -> str:
    rows = [
        [gate.stage, str(one.step), f"{one.reverse_kl:.3f}", percent(one.top_token_agreement), _verdict(one.passed)]
        for gate in report.gates
        for one in gate.checks
    ]
    head = ["stage", "warmup steps", "KL(student ‖ teacher), nats/token", "top tokens agree", "C2"]
    return _table("C2 during the warmup", head, rows)


def _labels(report: Report) -> str:
    spent = report.labels
    rows = [
        ["teacher RL (stage 1)", str(spent.teacher_rl)],
        ["student RL (stage 3), held out from stage 1", str(spent.student_rl)],
        ["validation (gates)", str(spent.validation)],
        ["test (this report)", str(spent.test)],
        ["all", str(spent.total)],
    ]
    return _table("Labels: each has one use", ["use", "labels"], rows) + "\n" + _ledger(report)


def _ledger(report: Report) -> str:
    rows = [[one.arm, one.stage, one.role, str(one.labels)] for one in report.ledger]
    return _table("Ledger: who spent them (every label is in ledger.jsonl)", ["arm", "stage", "use", "labels"], rows)


def _stages(report: Report) -> str:
    rows = [
        [
            one.id,
            str(one.steps),
            f"{one.tokens:,}",
            f"{one.seconds:.0f}",
            "not told" if one.peak_memory_gib is None else f"{one.peak_memory_gib:.2f} GiB",
            str(one.labels),
            str(one.dropped_prompts),
        ]
        for one in report.stages
    ]
    head = ["stage", "steps", "tokens", "seconds", "peak memory", "labels", "prompts too long"]
    return _table("Stages", head, rows)


def _provenance(report: Report) -> str:
    source = report.provenance
    lines = [
        "## Provenance",
        "",
        f"- teacher `{source.teacher}`, student `{source.student}`, verifier {source.verifier}",
        f"- plan `{source.plan_id}` (sha256 `{source.plan_sha256}`), seed {source.seed}, {source.created_at}",
        *(f"- {name}: sha256 `{digest}`" for name, digest in sorted(source.data_sha256.items())),
        "- " + ", ".join(f"{name} {number}" for name, number in source.versions.items()),
    ]
    return "\n".join(lines)
