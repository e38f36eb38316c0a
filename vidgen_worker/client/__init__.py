"""The interface for Python programs and operators: the service, and its statements.

This box never runs a task, and never pays.
"""
