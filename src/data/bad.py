"""The error of a file that cannot be read as a picture."""


class Bad(Exception):
    """A file that cannot be decoded; the message says what is wrong, then in a second sentence what to do."""
