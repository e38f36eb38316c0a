"""What Python programs and operators call: the service, and its statements.

It never runs a task, and never pays.
"""
