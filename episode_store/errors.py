"""The errors a user can cause, each a single line: what, where, expected, got, what to do."""


class UserError(Exception):
    """A mistake in input that the user can mend; command lines print it as one line and exit with 2."""


class EpisodeError(UserError):
    """An episode breaks the contract of `episode.py` or of its task's spec."""


class StoreError(UserError):
    """A folder is not a store, or a store's files cannot be used."""


class RemoteError(StoreError):
    """A store behind a URL cannot be reached, or its server cannot do what reading needs."""


class CorruptionError(StoreError):
    """Stored bytes do not match their checksum, or a file was cut short."""
