"""What a person reads at the end: the table of arms, curves, label spend, gates and provenance.

`python -m s2d.report JOB_DIR` writes `report/report.json` (schema: docs/report.md), `report.md` and the pictures from
the files that the stages left; it works for a job that failed half-way too, with what there is.
"""
