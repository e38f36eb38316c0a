"""Events: each happening is reported once; log and metrics subscribe.

This box decides nothing, and writes no secret.
"""
