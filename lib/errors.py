"""The error that users can mend."""


class InputError(Exception):
    """Something the user brought is not as it must be; the message says what was expected, what came and what to do.

    The command line prints it without a traceback and exits with code 2.
    """
