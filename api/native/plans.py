"""Plans: what a job would do, decided before it is paid for."""

from __future__ import annotations

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse

from api.deps import ContextDep
from api.schemas import MARKDOWN, Accept, After, Format, Id, Limit, Page, wants_markdown
from s2d.plan.document import Plan
from s2d.plan.render import to_markdown
from s2d.plan.request import PlanRequest
from s2d.plan.whatif import WhatIf, WhatIfRequest
from s2d.plan.whatif_table import to_markdown as to_table
from s2d.services import plans

router = APIRouter(tags=["plans"])
AS_PAGE = {"content": {"text/markdown": {"schema": {"type": "string"}}}}


@router.post("/plans", status_code=201, response_model=Plan, responses={201: AS_PAGE})
def create(ctx: ContextDep, body: PlanRequest, format: Format = None, accept: Accept = "") -> Response:
    """Make the staged plan for a pair of models and a number of labels, or a training file. Equal requests
    give the same plan as long as the same is known of the machine."""
    plan = plans.create(ctx, body)
    response = _represent(plan, format, accept, 201)
    response.headers["location"] = f"/v1/plans/{plan.id}"
    return response


@router.post("/what-if", response_model=WhatIf, responses={200: AS_PAGE})
def what_if(ctx: ContextDep, body: WhatIfRequest, format: Format = None, accept: Accept = "") -> Response:
    """Say for every combination of the varied values what would be planned, or why nothing can be: at most 2,000 rows.
    Nothing is kept."""
    found = plans.compare(ctx, body)
    if wants_markdown(format, accept):
        lines = to_table(found.rows, found.varied, priced=body.priced)
        return PlainTextResponse("\n".join(lines) + "\n", media_type=MARKDOWN)
    return Response(found.model_dump_json(), media_type="application/json")


@router.get("/plans")
def list_plans(ctx: ContextDep, after: After = None, limit: Limit = 20) -> Page[Plan]:
    """The plans, newest first."""
    rows, has_more = plans.list_page(ctx, after=after, limit=limit)
    return Page[Plan].of(rows, has_more, lambda row: Plan.model_validate(row.document))


@router.get("/plans/{plan_id}", response_model=Plan, responses={200: AS_PAGE})
def retrieve(ctx: ContextDep, plan_id: Id, format: Format = None, accept: Accept = "") -> Response:
    """One plan, as JSON or as a page in Markdown."""
    return _represent(plans.get(ctx, plan_id), format, accept, 200)


def _represent(plan: Plan, format: Format, accept: str, status: int) -> Response:
    if wants_markdown(format, accept):
        return PlainTextResponse(to_markdown(plan), status, media_type=MARKDOWN)
    return Response(plan.model_dump_json(), status, media_type="application/json")
