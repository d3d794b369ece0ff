"""Writing a file so that it is never seen half done, and what to do where it cannot be written."""

import errno
import os
import tempfile
from pathlib import Path


def write_atomic(path: str | Path, data: bytes) -> None:
    """Write `data` so that `path` always holds either the old or the new content, whatever happens."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def remedy(error: Exception, otherwise: str = "choose another folder") -> str:
    """What a person can do about a file that could not be written; `otherwise` is another way out."""
    number = getattr(error, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT):
        return "free some space"
    if number in (errno.EACCES, errno.EPERM):
        return f"get the permission to write there, or {otherwise}"
    if number == errno.EROFS:
        return f"make the file system writable, or {otherwise}"
    return f"check the disk and the folder, or {otherwise}"
