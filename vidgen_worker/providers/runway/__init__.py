"""Runway through its official SDK: requests, answers, inputs.

It never sends a paid request twice, and no exception of the SDK leaves it.
"""
