"""The queue's verbs: leases, claims, checkpoints, submissions, conclusions, the line.

This box calls no provider and no file store. The table of faults decides what follows from a fault.
"""
