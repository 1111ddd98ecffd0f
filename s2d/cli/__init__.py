"""The command `s2d`: starts the service, plans and trains without it, and talks to it over HTTP.

`app` lists the commands; each has a module of its own that imports what it needs when it is called, so that
`s2d --help` is there at once. The room imports neither `api` nor `worker`: the service is other processes.
"""

from __future__ import annotations


def main() -> None:
    from s2d.cli.app import run

    run()
