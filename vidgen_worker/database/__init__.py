"""The way to PostgreSQL: its URL, the pool, LISTEN, named statements, migrations, remedies.

This box never decides what a row means.
"""
