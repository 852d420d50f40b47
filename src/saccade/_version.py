"""The version of the installed package (its only source is setup.cfg)."""
from importlib.metadata import version

VERSION: str = version("saccade")
