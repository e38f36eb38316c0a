"""A trusted worker for paid AI video generation on Supabase."""

__version__ = "0.1.0"
