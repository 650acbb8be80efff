"""What the modules beside this one raise, other than OSError and ValueError."""


class KeyFileError(Exception):
    """A key file holds something else than was expected; says what, in words."""


def in_words(exc: Exception) -> str:
    """Return what went wrong, as a person is told: an OSError with the file that it is about."""
    if isinstance(exc, OSError) and exc.strerror:
        return f"{exc.filename}: {exc.strerror}" if exc.filename else exc.strerror
    return str(exc)
