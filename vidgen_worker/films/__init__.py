"""Films: several scenes in one order, whose parts are ordered as one and cut into one file.

An attempt at a film (`walk`) is run by the pipeline: it checks the cut, orders the parts, and makes
the outputs once these have ended. Nothing here claims a film or writes its end, and no foreign file
is opened in the worker's own process.
"""
