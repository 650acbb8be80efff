"""The stdio bridge: what Claude Desktop launches, and what must never look dead.

    client ═══ stdio ─▶ bridge ─┬▶ firsts ─┬▶ talk ─┬▶ stateless ─┬▶ service ─▶ endpoint
                                └──────────┘        └▶ session ───┘

A message from left to right, a room each:

    stdio        lines in and out, whatever a library prints, however large or broken they are
    message      what a line says; what cannot be one is refused with the id that waits
    bridge       every request gets one answer; what is cancelled gets none
    client       what it said of itself, what it is asked and told
    firsts       what is answered at once, from memory if need be, and set right later
    talk         the service in whichever era it knows (eras: one said in the words of the other)
    stateless    the service as of 2026-07-28: each request stands for itself
    session      the service as before: initialize, a session, a stream of its own messages
    service      one HTTP request and the messages that come back, under the at-most-once rule
    verdict      whose answer that is, and what stands in its place in words
    endpoint     where requests go: the tunnel that runs, or paths of our own

Nothing is bound or locked, so any number of copies run side by side and die at any moment.
"""
