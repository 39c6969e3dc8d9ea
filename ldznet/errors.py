"""The few exceptions that are the project's own."""


class UserError(ValueError):
    """The user's mistake: one clear line that names the thing and the mend. Exit code 2, never retried."""


class FinalError(Exception):
    """Nobody's mistake, and yet nothing that a retry mends: one clear line with the mend. Exit code 1."""


class DataFault(ValueError):  # noqa: N818 - a fault of the data is an event to count, not a bug to report
    """A deterministic fault of one sample's data alone: quarantined and counted, never retried."""
