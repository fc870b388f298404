"""Errors a user can cause, each with the exit code of the command that meets it."""


class GlassboxError(Exception):
    """An error that says what was expected, what was received and what to do.

    Args:
        expected: What would have been right, without a final full stop.
        received: What was found, as ``name=value``.
        fix: What the user can do about it.
    """

    exit_code = 1

    def __init__(self, expected: str, received: str, fix: str) -> None:
        super().__init__(expected, received, fix)  # all three, so that it survives pickling
        self.expected, self.received, self.fix = expected, received, fix

    def __str__(self) -> str:
        return f"Expected {self.expected}. Received: {self.received}. Fix: {self.fix}."


class ConfigError(GlassboxError):
    """A wrong option, preset, key or path: exit code 2."""

    exit_code = 2


class DataError(GlassboxError):
    """A source or a shard set that cannot be used: exit code 3."""

    exit_code = 3


class TrainingError(GlassboxError):
    """A run that started and could not finish: exit code 4."""

    exit_code = 4


class Interrupted(KeyboardInterrupt):
    """Work that was stopped from outside.

    Args:
        message: How to go on.
        exit_code: Of the command.
    """

    def __init__(self, message: str, exit_code: int = 130) -> None:
        super().__init__(message)
        self.exit_code = exit_code
