"""The droplet's half: who may ask the service for what, on record.

    NGINX ══ Unix socket ══▶ ┐
    sshd ═══ loopback ═════▶ ┴ app ─▶ identity ─▶ policy ─▶ state ─▶ audit ─▶ proxy ──▶ service

    app          one request through all of it; refuses at the first step that does
    identity     what NGINX proved, what the token says, what the registry knows of both
    registry     the one record of who may come in
    policy       which methods, tools and paths a role may ask for
    state        which tokens were used, and how fast who calls: SQLite, or Redis for several
    audit        a line before and a line after, each with the hash of the one before (chain)
    proxy        the request to the service and its answer back, as they come
    decision     every reason to refuse, and what the outside is told of it

`serve` is the process around it: sockets, reload, drain. `registrar` is the other process: it
alone changes the registry, as clients say in signed statements (keydesk passes them on, keychange
decides, changing writes, issued and authority hold certificates and CA), and ends their ssh
sessions. `authorized` answers sshd. `init`, `clients`, `check`, `site` (for NGINX), `sshd`,
`verify` and `frontdoor` serve the operator. Only `cli` and its parts print.
"""

__version__ = "0.1.0"
