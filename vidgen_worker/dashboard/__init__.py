"""The operator's pages in a browser: what waits, what runs, what failed and why, what it costs.

It reads the database through the client's statements and its own, and changes something only when a
person at this machine has seen a preview and said yes. It never runs a task, never shows text from
elsewhere unescaped, never asks what grows with what has ended, and listens on loopback only.
"""
