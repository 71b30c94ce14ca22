"""Small reference models; a config names them by file."""

from train.errors import UserError


class ModelError(UserError):
    """A model that cannot be made as the config says; the message says what to type."""
