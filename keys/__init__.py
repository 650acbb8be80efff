"""What both halves share, and pure: keys, tokens and certificates, and the files they live in.

No sockets, no event loop, no clock: time is passed in. README.md is the operator's page.
"""
