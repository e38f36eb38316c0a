"""Runway's double: as strict as the real one, with prompt words for everything that goes wrong.

It never asks the real one, and imports nothing of the worker.
"""
