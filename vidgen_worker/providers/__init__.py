"""What makes images and clips for money: the protocol, and one folder per provider.

It knows no task, no row and no price of ours.
"""
