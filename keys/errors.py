"""What the modules beside this one raise, other than OSError and ValueError."""


class KeyFileError(Exception):
    """A key file holds something else than was expected; says what, in words."""
