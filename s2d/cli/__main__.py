"""`python -m s2d.cli` is `s2d`."""

from s2d.cli import main

main()
