"""The folder of result files: one JSON a run, written whole or not at all, from whichever machine."""

import json
from pathlib import Path
from typing import Any

from symboliclight.core.atomic import remedy, write_atomic
from symboliclight.core.config import RunConfig, from_dict
from symboliclight.core.errors import InputError
from symboliclight.study.plan import Run, identity, without_place

FORMAT = 1


class Results:
    """Finished runs by identity. All of one folder were made on the same data and measured on the same split.

    Raises `InputError` for a damaged file, one whose name and content disagree, two different results of one run, or
    data other than `data_hash`, or another split than `split`.
    """

    def __init__(self, directory: str | Path, data_hash: str | None = None, split: str = "test") -> None:
        self.directory = Path(directory)
        self.split = split
        self.data_hash = data_hash
        self._found: dict[str, dict[str, Any]] = {}
        self._files: dict[str, Path] = {}  # identity -> where it was read
        self._read: dict[Path, int] = {}  # -> when it was written, ns
        self.refresh()

    def __len__(self) -> int:
        return len(self._found)

    def refresh(self) -> None:
        """Read the files that have come or changed since."""
        for path in sorted(self.directory.glob("*-*.json")):
            written = path.stat().st_mtime_ns
            if self._read.get(path) != written:
                self._add(path, read_result(path))
                self._read[path] = written

    def get(self, run: Run) -> dict[str, Any] | None:
        """The result of `run`, whatever it is called."""
        return self._found.get(run.identity(self.data_hash)) if self.data_hash else None

    def path(self, run: Run) -> Path:
        """Where the result of `run` is written."""
        return self.directory / f"{run.name}-{run.identity(self.data_hash or '')}.json"

    def put(self, run: Run, body: dict[str, Any]) -> Path:
        """Write one result."""
        path = self.path(run)
        lines = ",\n".join(f"{json.dumps(k)}: {json.dumps(v, ensure_ascii=False, allow_nan=False)}"
                           for k, v in {"format": FORMAT, **body}.items())
        try:
            write_atomic(path, f"{{\n{lines}\n}}\n".encode())
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror}; "
                             + remedy(error, "choose another --results")) from error
        self.refresh()
        return path

    def _add(self, path: Path, body: dict[str, Any]) -> None:
        config = from_dict(RunConfig, body["config"], str(path))
        if self.data_hash is None:
            self.data_hash = body["data_hash"]
        if body["data_hash"] != self.data_hash:
            raise InputError(f"{path} was made on data {body['data_hash'][:12]}, not {self.data_hash[:12]}; "
                             "give results of other data a folder of their own")
        measured = body.get("test", {}).get("split", self.split)
        if measured != self.split:
            raise InputError(f"{path} was measured on the {measured} split, this study measures on {self.split}; "
                             "give its results a folder of their own")
        found = identity(config, body["data_hash"])
        if not path.stem.endswith(f"-{found}"):
            raise InputError(f"{path} holds the run {found}, which is not the one in its name; restore the file, "
                             "or remove it to run it again")
        other = self._files.setdefault(found, path)
        if other != path and other.exists() and self._found[found] != body:
            raise InputError(f"{path} and {other.name} are two results of one run; remove the one that is wrong")
        if without_place(config) != config:
            raise InputError(f"{path} names a folder of data; it was not written by a study, remove it")
        self._found[found] = body


def read_result(path: Path) -> dict[str, Any]:
    """One result file. Raises `InputError` if it is damaged or from a newer version."""
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        written = body["format"]
        missing = {"config", "data_hash", "label", "seed"} - set(body)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; check the path") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged or foreign ({error}); restore it, or remove it to run it again") from error
    if written != FORMAT or missing:
        raise InputError(f"{path} has format {written}, this version reads {FORMAT}; upgrade symboliclight")
    return body
