"""Every failure a person or a client can meet: a stable code, words, and what to do about it.

One catalogue serves the log, `status`, the HTTP answers and docs/troubleshooting.md (a test
compares the two). HTTP statuses follow RFC 9110 section 15; the JSON-RPC codes are ours, from the
part of the servers' range (JSON-RPC 2.0 section 5.1) that neither MCP nor its SDK uses: -32003 to
-32019.
"""

from dataclasses import dataclass
from typing import NamedTuple


class Entry(NamedTuple):
    """What is fixed for a code: HTTP status, JSON-RPC code, remedy."""

    status: int
    rpc: int
    remedy: str


_DROPLET = "Check that the droplet is running and that this machine is online."
_NOT_SENT = "It was not sent, so it is safe to call again."
_NOT_DELIVERED = "The request was not delivered, so it is safe to call again."

CATALOGUE: dict[str, Entry] = {
    # The link: why the SSH connection is not up. Requests meet these as the reason in a 503.
    "dns_failed": Entry(503, -32013, "Check the name in the settings and this machine's network."),
    "connect_failed": Entry(503, -32013, f"{_DROPLET} The port in the settings must be open."),
    "connect_timeout": Entry(503, -32013, f"{_DROPLET} A firewall may drop the port."),
    "handshake_timeout": Entry(
        503, -32013, "The server accepted but did not finish the SSH handshake: look at its load."
    ),
    "handshake_failed": Entry(
        503, -32013, "Check that [ssh] host and port name an SSH server, and look at its log."
    ),
    "link_lost": Entry(503, -32013, "Nothing to do: the link is being made again."),
    "auth_denied": Entry(
        503,
        -32013,
        "Install the line that `catalyst-tunnel init --show-key` prints into the account's "
        "authorized_keys, and check [ssh] user and identity.",
    ),
    "host_key_changed": Entry(
        503,
        -32013,
        "Somebody may be impersonating the droplet. If its key was replaced on purpose, compare "
        "the fingerprint on the droplet (ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub), remove "
        "the old line from known_hosts and run `catalyst-tunnel init` again.",
    ),
    "host_key_unknown": Entry(
        503,
        -32013,
        "Run `catalyst-tunnel init`, which shows the fingerprint and pins it once confirmed.",
    ),
    "key_unusable": Entry(
        503, -32013, "Fix the file that is named; `init` and `keys request` make new ones."
    ),
    # The https path: why no request gets through there.
    "tls_failed": Entry(503, -32013, "Check [https] url, and look at NGINX's error log."),
    "tls_untrusted": Entry(
        503,
        -32013,
        "Somebody may be impersonating the droplet. Check [https] url, and ca_file where its "
        "certificate is from a private CA; a public one may have expired.",
    ),
    "proxy_refused": Entry(
        503, -32013, "Check the system's HTTPS proxy, or set [https] use_proxy = false."
    ),
    "certificate_expired": Entry(
        503,
        -32013,
        "`up` renews it by the ssh path, where that leads to the gateway; at once: "
        "`catalyst-tunnel keys rotate cert`. Else enrol again: `keys request`, `client add`, "
        "`keys accept`.",
    ),
    "certificate_refused": Entry(
        503,
        -32013,
        "It may have expired, or be from a CA that NGINX no longer takes: enrol again with "
        "`keys request`, `client add` and `keys accept`.",
    ),
    "token_refused": Entry(
        503,
        -32013,
        "See whether this client is revoked or unknown: `catalyst-gateway client list`; the "
        "gateway's audit log has the exact reason.",
    ),
    "gateway_down": Entry(
        503, -32013, f"Start it on the droplet: systemctl start catalyst-gateway. {_NOT_SENT}"
    ),
    "gateway_busy": Entry(
        503, -32013, f"The gateway's log and /ready on the droplet say why. {_NOT_SENT}"
    ),
    "registrar_unavailable": Entry(
        503,
        -32013,
        "See on the droplet that `catalyst-gateway registrar` runs, and its log; then try again.",
    ),
    "gateway_missing": Entry(
        502,
        -32012,
        "Check [https] url (or [ssh] target and gateway): a gateway must be behind it, and "
        "nothing in between may answer for it.",
    ),
    # The stdio bridge: answers to its client.
    "settings_faulty": Entry(503, -32013, f"Mend the settings, then call again. {_NOT_SENT}"),
    "session_lost": Entry(502, -32012, f"The service may be restarting. {_NOT_SENT}"),
    # The listener: answers to requests.
    "hold_expired": Entry(503, -32013, f"No path came up in time. {_NOT_SENT}"),
    "hold_full": Entry(503, -32013, f"Too much is waiting already. {_NOT_SENT}"),
    "busy": Entry(503, -32013, f"Too many requests run at once. {_NOT_SENT}"),
    "stopping": Entry(503, -32013, f"Start the tunnel again. {_NOT_SENT}"),
    "target_refused": Entry(
        502,
        -32012,
        "The droplet is reached but nothing listens where the service should: start it. "
        f"{_NOT_DELIVERED}",
    ),
    "target_prohibited": Entry(
        502,
        -32012,
        "sshd's policy forbids the target: permitopen or PermitOpen must name [ssh] target "
        "letter for letter (localhost is not 127.0.0.1).",
    ),
    "target_timeout": Entry(
        504,
        -32014,
        f"The droplet could not reach [ssh] target in time. {_NOT_DELIVERED}",
    ),
    "upstream_silent": Entry(
        504,
        -32016,
        "The service took the request and may still be at work on it: look at its log and state "
        "before you call again.",
    ),
    "upstream_invalid": Entry(
        502, -32012, "What answers on [ssh] target does not speak HTTP/1.1: check the address."
    ),
    "upstream_closed": Entry(
        502, -32012, "The service closed the connection without an answer. Look at its log."
    ),
    "outcome_unknown": Entry(
        502,
        -32015,
        "The request left and no answer came back: it may have run, or not. Look at the service's "
        "state before you call again; it was not sent twice.",
    ),
    "host_forbidden": Entry(
        403, -32003, "Use http://localhost or http://127.0.0.1 with the tunnel's port."
    ),
    "origin_forbidden": Entry(
        403, -32003, "If that web page may call the service, add it to [tunnel] allowed_origins."
    ),
    "method_refused": Entry(501, -32011, "A tunnel to one service does not offer this method."),
    "request_invalid": Entry(400, -32010, "Send a well-formed HTTP/1.1 request."),
    "request_slow": Entry(408, -32008, "Send the whole request without such pauses."),
    "headers_too_large": Entry(431, -32011, "Send smaller header fields."),
    "internal_error": Entry(
        500, -32019, "This is a defect in catalyst-tunnel: please report it with the log."
    ),
}


# What no second try can mend before somebody acts.
PERMANENT = frozenset(
    {
        "auth_denied",
        "certificate_expired",
        "certificate_refused",
        "host_key_changed",
        "host_key_unknown",
        "key_unusable",
        "tls_untrusted",
        "token_refused",
    }
)


@dataclass(frozen=True, slots=True)
class Problem:
    """One occurrence: a code from the catalogue, and what happened in words (no secrets)."""

    code: str
    message: str

    @property
    def entry(self) -> Entry:
        """The catalogue's entry; a code that is not in it is a programming error."""
        return CATALOGUE[self.code]

    @property
    def status(self) -> int:
        """HTTP status of an answer that reports it."""
        return self.entry.status

    @property
    def remedy(self) -> str:
        """What to do about it."""
        return self.entry.remedy

    @property
    def in_general(self) -> str:
        """What happened and what to do, without what is said of the request that met it."""
        text = str(self)
        for said in (_NOT_SENT, _NOT_DELIVERED):
            text = text.removesuffix(said).rstrip()
        return text

    @property
    def permanent(self) -> bool:
        """Whether trying again cannot help until somebody acts."""
        return self.code in PERMANENT

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}"


class ProblemError(Exception):
    """A problem on its way to whoever has to be told."""

    def __init__(self, code: str, message: str) -> None:
        self.problem = Problem(code, message)
        super().__init__(str(self.problem))
