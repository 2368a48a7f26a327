"""Recipes, one file per experiment. common.py explains the settings."""
