"""The process: claims, heartbeat, drain, the tasks it holds, systemd, the janitor.

It knows no stage.
"""
