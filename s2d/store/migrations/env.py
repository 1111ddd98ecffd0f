"""Alembic's entry: runs the migrations on the connection that `Database.migrate` handed over."""

from alembic import context
from sqlalchemy import text

from s2d.store.tables import Base

connection = context.config.attributes["connection"]
if connection.dialect.name == "postgresql":
    # Two processes starting at once must not both create the tables. The number is arbitrary but fixed.
    connection.execute(text("SELECT pg_advisory_xact_lock(7301202605)"))
context.configure(connection=connection, target_metadata=Base.metadata)
with context.begin_transaction():
    context.run_migrations()
