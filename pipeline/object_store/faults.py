"""What a store ends with when trying again did not help; each message names the object."""


class UnavailableObjectError(OSError):
    """The store kept failing: throttled, reset, cut short, away."""


class DamagedObjectError(OSError):
    """An object, or an answer about it, kept arriving other than it was sent."""


class ObjectTooLargeError(OSError):
    """An object is larger than what it is for may be. Nothing of it was read."""

    @classmethod
    def of(cls, where: str, *, size: int, at_most: int) -> "ObjectTooLargeError":
        """The usual message."""
        return cls(f"{where} has {size} bytes, more than the {at_most} that it may have: it was not read")
