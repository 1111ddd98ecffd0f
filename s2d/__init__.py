"""s2d: sparse-to-dense post-training as a service.

Labels go upstream (GRPO on a strong teacher), behaviour flows downstream (a dense bridge into a small student),
after *Beyond GRPO and On-Policy Distillation* (arXiv 2605.12483). This package holds all that is true without HTTP
and without Celery; `api` and `worker` import it, never the other way round.
"""

__version__ = "0.1.0"
