"""The droplet's half.

What is here is what a droplet needs for the ssh path with plain sshd: the account's rules, in
`sshd`. `cli` prints them.
"""

__version__ = "0.1.0"
