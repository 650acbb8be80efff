"""The laptop's half: one local address that never goes away, and the ways to the droplet behind it.

    client ──HTTP──▶ listener ──▶ exchange ──▶ path ──▶ link ══ SSH ══▶ droplet ──▶ service
    client ──TCP───▶ forward  ─────────────────────────▶┘

A request from left to right, a room each:

    listener, http     accept, check Host and Origin (guard), speak HTTP/1.1 through h11
    exchange, mcp      carry one request; decide whether it may be sent a second time
    hold               keep requests while every path is down, within bounds
    paths, pool        a way to the service; connections kept warm on it
    link, lifecycle    one supervised SSH connection; its states and events in a table
    backoff            when to try again, and which failures not to repeat
    ssh, wire, channels  everything that touches asyncssh
    forward            raw TCP beside it, under the same promises

`up` puts them together; `settings` reads the file, `control` answers `status` and `down`,
`initialise` writes the first file, `problems` holds every failure in words. Only `cli` prints.
"""

__version__ = "0.1.0"
