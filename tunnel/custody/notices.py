"""What will stop working if nobody acts: a stable code, words, and what to do about it.

Unlike a problem (`problems`), a notice is not in the way of any request yet. Pure: the time is
passed in.
"""

from dataclasses import dataclass

EARLY = 30.0  # days before an end at which it is told
DAY = 86400.0

REMEDIES: dict[str, str] = {
    "certificate_ending": "`up` renews it by itself; at once: `catalyst-tunnel keys rotate cert`.",
    "client_ca_ending": "On the droplet: `catalyst-gateway ca rotate`, then `keys rotate cert`.",
    "site_certificate_ending": "On the droplet: see why certbot does not renew it "
    "(`certbot renew --dry-run`), then reload NGINX.",
    "key_old": "`catalyst-tunnel keys rotate`, with the family that is named.",
    "key_not_accepted": "`catalyst-tunnel keys rotate` makes another, by a path that works; "
    "otherwise enrol again: `keys request`, `client add`, `keys accept`.",
    "rotation_pending": "`catalyst-tunnel keys rotate` goes on with it, and so does `up`.",
}


@dataclass(frozen=True, slots=True)
class Notice:
    """One occurrence."""

    code: str
    message: str

    @property
    def remedy(self) -> str:
        """What to do about it."""
        return REMEDIES[self.code]

    def to_json(self) -> dict[str, str]:
        """Return it as plain data."""
        return {"code": self.code, "message": self.message, "remedy": self.remedy}

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}"


def ending(code: str, what: str, end: float | None, now: float) -> list[Notice]:
    """Return the notice of an end (seconds since the epoch) that is near or past, if it is."""
    if end is None or end - now > EARLY * DAY:
        return []
    days = round(abs(end - now) / DAY)
    span = "less than a day" if days == 0 else "1 day" if days == 1 else f"{days} days"
    when = f"ends in {span}" if end >= now else f"has ended {span} ago"
    return [Notice(code, f"{what} {when}.")]


def renewal_due(begin: float, end: float, now: float, jitter: float) -> bool:
    """Return whether a certificate is past two thirds of its life.

    Args:
        begin, end, now: seconds since the epoch.
        jitter: between 0 and 1, the same for one laptop each time: laptops that were enrolled
            together do not come back together. It moves the day by up to a tenth of the life.
    """
    life = end - begin
    return now >= begin + life * (2 / 3 - jitter / 10)
