"""Supabase's double: the objects that migrations expect, keys, and Storage.

It never touches a hosted project.
"""
