"""The nouns of the work and the decisions about them: tasks, faults, keys, sizes, words.

It does no input or output, and knows no other box.
"""
