"""Shared by the commands: running them, joining other processes, parsing numbers."""
