"""One attempt at one film: what its cut says, and what follows from its parts.

Nothing here claims a film or writes its end: the worker and the pipeline do.
"""
