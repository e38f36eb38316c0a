"""Realtime's double: `postgres_changes` over Phoenix messages, as supabase-js listens to them.

Reading order: `server` (the protocol), `reader` (the slot), `pgoutput` (its messages), `visibility`
(who may see what). It has no broadcast and no presence, and never sends a change again.
"""
