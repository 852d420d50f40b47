"""The version of the package, whose only source is setup.cfg: as it was installed, or as it lies in a clone."""
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def _version() -> str:
    try:
        return version("saccade")
    except PackageNotFoundError:  # `make gpu-check` installs nothing
        from configparser import ConfigParser

        clone = ConfigParser()
        clone.read(Path(__file__).resolve().parents[2] / "setup.cfg")
        return clone["metadata"]["version"]


VERSION: str = _version()
