"""The way to PostgreSQL: its URL, the pool, LISTEN, named statements, migrations, remedies.

It never decides what a row means.
"""
