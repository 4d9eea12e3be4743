"""The one exception that means "the user can mend this"."""


class UserError(Exception):
    """Bad input: one line that says what is wrong and what to do about it.

    Entry points print it without a traceback and exit with status 1.
    """
