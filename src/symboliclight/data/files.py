"""Folders that appear whole or not at all, JSON manifests, file hashes."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from symboliclight.core import lock
from symboliclight.core.atomic import remedy, write_atomic
from symboliclight.core.errors import InputError

FORMAT = 1  # of manifests; raised when a field changes meaning


@contextmanager
def whole_folder(out: str | Path, manifest: str, replace: bool = False) -> Iterator[Path]:
    """Yield a hidden folder beside `out` that takes its name only if the block ends well.

    After a failure or a kill `out` is as it was before; what a killed run left behind is cleared by the next one.
    Raises `InputError` if `out` holds something and `replace` is false, or if it has no `manifest`: a folder that was
    not made here is never replaced; and `InUse` if another process is writing it.
    """
    out = Path(out)
    with lock.held(out.parent / f".{out.name}{lock.NAME}", out), _whole(out, manifest, replace) as partial:
        yield partial


@contextmanager
def _whole(out: Path, manifest: str, replace: bool) -> Iterator[Path]:
    partial, old = (out.parent / f".{out.name}.{word}" for word in ("partial", "old"))
    if old.exists() and not out.exists():  # killed between the two renames below
        os.replace(old, out)
    _check_free(out, manifest, replace)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        if out.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.replace(out, old)
        os.replace(partial, out)
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror or error}; nothing was changed, "
                         + remedy(error, "choose another --out")) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def _check_free(out: Path, manifest: str, replace: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not out.is_dir() or not (out / manifest).is_file():
        raise InputError(f"{out} exists and holds something else; choose another --out")
    if not replace:
        raise InputError(f"{out} exists already; choose another --out, or add --replace to build it again")


def write_manifest(path: Path, body: dict[str, Any]) -> None:
    """Write `body` with the format number."""
    text = json.dumps({"format": FORMAT, **body}, indent=2, ensure_ascii=False)
    write_atomic(path, text.encode() + b"\n")


def read_manifest(path: Path, made_by: str) -> dict[str, Any]:
    """Read what `write_manifest` wrote; anything else raises `InputError` that names `made_by`, the command to run."""
    try:
        body = json.loads(path.read_bytes())
        written = body["format"]
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; make the folder with: {made_by}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged or foreign; make the folder again with: {made_by}") from error
    if written != FORMAT:
        raise InputError(f"{path} has format {written}, this version reads {FORMAT}; make it again with: {made_by}")
    return body


def hash_file(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
