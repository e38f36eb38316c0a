"""Outputs between provider and store: downloads, their folder, and the child that looks at them.

It stores nothing, and never opens a foreign file in the worker's own process.
"""
