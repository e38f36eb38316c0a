"""Films: several scenes cut into one, and each of its outputs rendered from local files.

It orders, stores and charges nothing, and never opens a foreign file in the worker's own process.
"""
