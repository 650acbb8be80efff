"""The droplet's half: who may ask the service for what, on record.

    NGINX ══ Unix socket ══▶ ┐
    sshd ═══ loopback ═════▶ ┴ app ─▶ identity ─▶ policy ─▶ state ─▶ audit ─▶ proxy ──▶ service

    app          one request through all of it; refuses at the first step that does
    identity     what NGINX proved, what the token says, what the registry knows of both
    registry     the one record of who may come in
    policy       which methods, tools and paths a role may ask for
    state        which tokens were used, and how fast who calls: SQLite, or Redis for several
    audit        a line before and a line after, each with the hash of the one before
    proxy        the request to the service and its answer back, as they come
    decision     every reason to refuse, and what the outside is told of it

`serve` is the process around it: sockets, reload, drain. `init`, `clients`, `check`, `site` (for
NGINX) and `sshd` write and check files for the operator. Only `cli` prints.
"""

__version__ = "0.1.0"
