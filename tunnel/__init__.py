"""The laptop's half: one local address that never goes away, and the ways to the droplet behind it.

    client ──HTTP──▶ listener ─▶ exchange ─▶ choice ─┬▶ path ─▶ link ══ SSH ═══▶ sshd ──┐
    client ──stdio─▶ bridge ─┘                       │
    client ──TCP───▶ forward ────────────────────────┼─────────▶┘                       ├▶ service
                                                     └▶ path ─▶ link ══ HTTPS ═▶ NGINX ─┘

A request from left to right, a room each:

    bridge             MCP on stdin and stdout: what Claude Desktop launches; a house of its own
    listener, http     accept, check Host and Origin (guard), speak HTTP/1.1 through h11
    exchange, mcp      carry one request; decide whether it may be sent a second time
    hold               keep requests while every path is down, within bounds
    choice             which path a request takes, and when it is taken again
    paths, pool        a way to the service; connections kept warm on it
    tokens             what a gateway wants of a request, and what its answers mean
    link, lifecycle    one supervised connection; its states and events in a table
    ssh, https         the two kinds: everything about asyncssh (wire, channels), about TLS
    backoff, dial      when to try again; names resolved and addresses raced

`up` puts them together, the paths in `roads`; `settings` reads the file, `control` answers
`status` and `down`, `initialise` writes the first files, `problems` holds all failures in words.
`custody` is a house of its own, for the keys. `claude` tells MCP clients of us (`clients`: where;
`jsonedit`: how), `bundle` packs us for them; `terminal` asks the service for `cli_terminal`.
"""

__version__ = "0.1.0"
