"""Films: several scenes in one order, whose parts are ordered as one and cut into one file.

An attempt at a film (`walk`) is run by the pipeline. The making of its outputs (`cut` to
`rendering`) stands alone: no order asks for it. Nothing here claims a film or writes its end, and
no foreign file is opened in the worker's own process.
"""
