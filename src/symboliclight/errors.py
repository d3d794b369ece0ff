"""The one exception that means "the input is wrong, here is how to mend it"."""


class InputError(ValueError):
    """Bad input from a person: a file, an option or a config.

    The message is one line that says what is wrong, in which file or option, and how to fix it.
    The command line prints it on stderr and exits with code 2; nothing is lost or half-written.
    """


class Diverged(InputError):
    """A training run whose loss exploded more often than it may go back."""
