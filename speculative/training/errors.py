"""The one error of training."""


class TrainingError(ValueError):
    """The request makes no sense; the message says what was given, what is wanted and what to do."""
