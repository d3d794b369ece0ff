"""Where a figure comes from: the commit, the machine and the versions that go into every result file."""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from symboliclight.core import processor
from symboliclight.core.atomic import write_atomic
from symboliclight.core.version import __version__


def commit() -> str:
    """Git commit of the checkout one stands in, `-dirty` if tracked files outside results/ differ; else the version."""
    try:
        name = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)results")
    except (OSError, subprocess.SubprocessError):
        return f"v{__version__}"
    return name + "-dirty" * bool(changed)


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10, check=True).stdout.strip()


def machine() -> dict[str, Any]:
    """Processor, its instruction sets that matter here, what caps them, cores, memory, GPUs if any, and versions."""
    flags = processor.flags()
    wanted = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni", "amx_bf16", "amx_int8", "asimd")
    return {
        "processor": processor.name(),
        "instructions": [f for f in wanted if f in flags],
        **({"caps": caps} if (caps := processor.caps()) else {}),
        **(processor.precision_facts() if "torch" in sys.modules else {}),
        "cores": os.cpu_count(),
        "memory_gib": round(_memory_bytes() / 2**30, 1),
        **_accelerators(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{p.metadata["Name"]: p.version for p in importlib.metadata.distributions()
           if p.metadata["Name"] in ("torch", "transformers", "numpy")},
    }


def _accelerators() -> dict[str, list[str]]:
    """GPUs that a program with torch in it sees; nothing is imported for the question."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return {}
    return {"accelerators": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]}


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Write one result file, atomically, with the commit and machine it was measured on."""
    body = {"commit": commit(), "machine": machine(), **result}
    write_atomic(path, (json.dumps(body, indent=1, ensure_ascii=False) + "\n").encode())


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):  # not POSIX
        return 0
