"""Everything that says "not now": gates, storms, limits, the provider's places.

This box never pays, and never ends a task.
"""
