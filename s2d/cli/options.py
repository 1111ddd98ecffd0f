"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

StateDir = Annotated[
    Path | None,
    typer.Option(
        "--state-dir",
        help="Folder of the database, jobs, models and the key [env S2D_STATE_DIR; ~/.s2d].",
        metavar="DIR",
    ),
]
Url = Annotated[
    str | None,
    typer.Option("--url", envvar="S2D_URL", help="The service; else the one that runs on the state folder."),
]
Key = Annotated[
    str | None,
    typer.Option("--key", envvar="S2D_API_KEY", help="API key; else the one in the state folder.", show_envvar=True),
]
