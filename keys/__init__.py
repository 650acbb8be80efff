"""What both halves share, and pure: keys, the files they live in, and the lines that name them.

No sockets, no event loop, no clock: time is passed in. README.md is the operator's page.
"""
