"""Measures what a machine reaches in some seconds, so that a plan's times are more than orders of magnitude.

`python -m s2d.probe DEVICE THREADS` prints `s2d.plan.document.Rates` as JSON. It is a process of its own, as it needs
torch, which those who plan do without. It measures an idle machine, and on one device: what several processes take from
each other is not seen.
"""
