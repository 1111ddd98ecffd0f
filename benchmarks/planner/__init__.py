"""The planner held against measurement (make bench-planner).

Stages of small models with random weights run here, each in a process of its own through the pipeline of `s2d train`;
what a stage took is kept as a row beside what the plan had said. `cells` has the grids, `pairs` makes the models and
the data, `measure` runs a cell; `memory` and `times` judge peaks and seconds. Rows are stored, and can be judged again
without running anything.
"""
