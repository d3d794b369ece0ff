"""What people are told: the exception "the input is wrong, here is how to mend it", and the warnings "this is slow" and
"this is left out"."""


class InputError(ValueError):
    """Bad input from a person: a file, an option or a config.

    The message is one line that says what is wrong, in which file or option, and how to fix it.
    The command line prints it on stderr and exits with code 2; nothing is lost or half-written.
    """


class Diverged(InputError):
    """A training run whose loss exploded more often than it may go back."""


class Slow(RuntimeWarning):
    """Something was asked for that works, but far slower than another way, which the message names."""


class LeftOut(UserWarning):
    """A part of the input is not read; the message names it."""
