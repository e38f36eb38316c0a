"""An embedded PostgreSQL for demos and tests.

It leaves nothing behind, and never runs as root.
"""
