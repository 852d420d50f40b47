"""Lists of names in a data set's text files, as ImageSets/2017/val.txt: one a line, each a file or folder beside others."""
from __future__ import annotations

from pathlib import Path

from saccade.errors import SaccadeError

MAX_BYTES = 1 << 26  # of a list; one of ImageNet's size is a third of it


def read_names(path: Path) -> list[str]:
    """Return the names of a list, each once, in its order. Raises SaccadeError for a name that leaves its folder."""
    if path.exists() and not path.is_file():  # a pipe would be waited for, and a device has no end
        raise SaccadeError(f"{path} is no file; the data set's list of names is expected there")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise SaccadeError(f"{path}: more than {MAX_BYTES >> 20} MiB are no list of names; give one name a line")
        text = path.read_text("utf-8")
    except OSError as error:
        raise SaccadeError(f"{path}: {error.strerror}; the data set's list of names is expected there") from error
    except UnicodeDecodeError as error:
        raise SaccadeError(f"{path} is not UTF-8 text; give one name a line") from error
    names = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    for name in names:
        if name in (".", "..") or "/" in name or "\\" in name or "\0" in name:
            raise SaccadeError(f"{path}: {name[:80]!r} is no plain name; give one name a line, without folders")
    if not names:
        raise SaccadeError(f"{path} is empty; give one name a line")
    return names
