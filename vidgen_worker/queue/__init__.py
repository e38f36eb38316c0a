"""The queue's verbs: leases, claims, checkpoints, submissions, conclusions, the line.

It talks to no provider and no file store, and decides nothing that the table of faults decides.
"""
