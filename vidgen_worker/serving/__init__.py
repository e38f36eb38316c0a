"""An HTTP server in a thread of this process, for the sandbox and the dashboard.

This box knows no application, and needs the packages of an extra.
"""
