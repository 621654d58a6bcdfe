"""The one exception of the local stack, in a file of its own so that every part can raise it."""


class LocalSupabaseError(RuntimeError):
    """The local stack cannot do what was asked; the message says why and what to do next."""
