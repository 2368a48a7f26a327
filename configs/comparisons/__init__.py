"""Comparisons of several recipes under one budget, for cli.compare; common.py explains their settings."""
