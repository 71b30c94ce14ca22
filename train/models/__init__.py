"""Small reference models; a config names them by file."""


class ModelError(ValueError):
    """A model that cannot be made as the config says; the message says what to type."""
