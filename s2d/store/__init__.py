"""All SQL is here: files, plans, jobs, leases, events, the label ledger, students, keys and the outbox.

The database is the truth (design decision 2): a Celery message only says "look at this job". SQLite in WAL mode is the
embedded default, PostgreSQL the distributed one, with the same code. Times are seconds since the epoch, taken from the
database's clock wherever two processes compare them.
"""
