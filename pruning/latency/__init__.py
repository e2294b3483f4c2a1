"""Milliseconds: of sub-blocks at every level, and of whole models end to end."""
