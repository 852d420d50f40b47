"""Data sets in the folders that the official projects expect."""
