"""What happens is said once, as an event; log and metrics subscribe.

It decides nothing, and no secret leaves through it.
"""
