"""`python -m s2d.report JOB_DIR`: write report.json, report.md and the pictures."""

from __future__ import annotations

import sys
from pathlib import Path

from s2d.atomic import write_atomic
from s2d.report.build import build
from s2d.report.markdown import to_markdown
from s2d.report.pictures import draw
from s2d.runner.layout import JobLayout


def main(arguments: list[str]) -> int:
    layout = JobLayout(Path(arguments[0]).absolute())
    report = build(layout)
    layout.report.mkdir(parents=True, exist_ok=True)
    pictures = draw(report, layout.report)
    write_atomic(layout.report / "report.md", to_markdown(report, pictures))
    # Last: whoever finds report.json finds the rest too.
    write_atomic(layout.report / "report.json", report.model_dump_json(indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
