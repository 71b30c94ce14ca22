"""Small reference models; a config names them by file."""
