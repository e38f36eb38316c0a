"""Tests of films: orders of several scenes."""
