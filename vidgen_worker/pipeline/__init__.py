"""One attempt at one task: its walk over the stages, a module per state of a checkpoint.

It claims nothing, and knows no other task.
"""
