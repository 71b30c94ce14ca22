"""What train/new.py copies for a user, NAME replaced by the name of their task.

They are modules of the package so that linters and type checkers read them; nothing imports them.
"""
