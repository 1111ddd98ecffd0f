"""A plan as a page that a person understands: Markdown for files and the API, rich for the terminal."""

from __future__ import annotations

from rich.console import RenderableType

from s2d.plan.document import Plan
from s2d.plan.page import markdown, terminal
from s2d.plan.page.facts import page_of


def to_markdown(plan: Plan) -> str:
    """The whole plan as one Markdown page."""
    return markdown.lay_out(page_of(plan))


def to_rich(plan: Plan) -> RenderableType:
    """The plan for a terminal of 80 columns or more."""
    return terminal.lay_out(page_of(plan))
