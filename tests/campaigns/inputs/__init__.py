"""Inputs as people have them, made by generators, and what comes of them: python -m
tests.campaigns.inputs
"""
