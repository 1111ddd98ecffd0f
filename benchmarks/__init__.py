"""What s2d can do, measured: each module is one benchmark with a make target, and writes what it saw to `results/`."""
