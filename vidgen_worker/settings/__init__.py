"""How a setting is found, looked at and shown.

It doesn't know which settings there are: that is said in `config.py`.
"""
