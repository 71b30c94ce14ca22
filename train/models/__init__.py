"""Models: small reference models, which a config names by file, and what makes and saves models."""

from train.errors import UserError


class ModelError(UserError):
    """A model that cannot be made as the config says; the message has the fix."""
