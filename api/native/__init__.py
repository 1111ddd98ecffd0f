"""s2d's own resources: plans and jobs. Each is one file: the schemas it answers with, then its endpoints."""
