"""Films: several scenes, ordered as one.

Nothing here claims a film or writes its end: the worker and the pipeline do.
"""
