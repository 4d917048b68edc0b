"""What a person who converts, distils or evaluates can do something about."""


class SwiftKVError(ValueError):
    """A request that cannot be done. The message says what was found, what was wanted and what to do."""
