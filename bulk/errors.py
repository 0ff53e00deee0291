"""What can go wrong with a folder of codes as a whole; a picture that can't be used is a row instead."""

from models.options import ConfigError


class BulkError(ConfigError):
    """Sources or a folder of codes that can't be used; the message says what is wrong and what to change."""
