"""Recipes: one file an experiment. See common.py for what every setting means."""
