"""Faults are injected into real runs: what must survive them, row by row.

python -m tests.campaigns.faults [--quick | --full] [ROW ...]
"""
