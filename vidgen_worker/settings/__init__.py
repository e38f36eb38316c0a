"""How a setting is found, checked and shown.

This box does not know the list of settings: that is in `config.py`.
"""
