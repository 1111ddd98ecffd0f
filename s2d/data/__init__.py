"""Labels: an uploaded file becomes checked rows, and the rows become the shares that stages may spend.

`ingest` reads an upload into rows, `split` deals the rows out by a seed, `summarize` counts them for the planner.
Everything streams: memory grows with the number of rows (about 200 bytes each), not with their text.

Not guaranteed: that near-duplicates (a problem with one word changed) stay in one share. Only prompts that are equal
after Unicode and white-space normalisation, invisible characters left out, are the same label.
"""

from s2d.data.ingest import IngestReport, Limits, Rejection, ingest
from s2d.data.rows import Message, Row, find_row, prompt_id, read_rows, write_rows
from s2d.data.split import ROLES, Role, SplitReport, split
from s2d.data.summary import Summary, summarize

__all__ = [
    "ROLES",
    "IngestReport",
    "Limits",
    "Message",
    "Rejection",
    "Role",
    "Row",
    "SplitReport",
    "Summary",
    "find_row",
    "ingest",
    "prompt_id",
    "read_rows",
    "split",
    "summarize",
    "write_rows",
]
