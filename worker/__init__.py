"""Who runs a job and where: the Celery app, the supervisor with its lease, the outbox and the reaper."""
