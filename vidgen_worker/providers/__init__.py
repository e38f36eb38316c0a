"""The paid providers of images and clips: the protocol, and one folder per provider.

It knows no task, no row and no price of ours.
"""
