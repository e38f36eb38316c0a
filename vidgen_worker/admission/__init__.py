"""Everything that says "not now": gates, storms, limits, the provider's places.

It never pays, and it never ends a task.
"""
