"""The demonstration: a tiny teacher and student of a real architecture, and the arithmetic they learn.

A two-core laptop sees the sparse-to-dense effect in minutes. `task` makes problems and pre-training text, `tokenizer`
the shared tokenizer, `pretrain` the two base models (kept built under `assets/`), `settings` the values that a plan
request for the pair carries. No other room knows about this one: the pair and its data go in through the same files,
plans and jobs as any other.
"""
