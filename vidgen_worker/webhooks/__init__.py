"""Webhooks: a signed request for each event, to addresses that others have chosen.

It sends and says what came of it; what is due and what follows is decided in PostgreSQL. It reaches
no address that is not public, and shows no answer to anybody.
"""
