"""Supabase Storage: buckets, uploads, signed addresses.

It knows no task, and never looks into a file.
"""
