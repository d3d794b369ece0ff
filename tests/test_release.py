"""What `make release` reads: one version everywhere, and the notes of a version."""

import importlib.util
import sys
from pathlib import Path

import pytest

import symboliclight

TOOLS = Path(__file__).resolve().parents[1] / "tools"


@pytest.fixture
def release(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    spec = importlib.util.spec_from_file_location("release", TOOLS / "release.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.modules.pop("wheel", None)


def test_the_version_is_the_same_wherever_it_stands(release):
    assert release.versions() == symboliclight.__version__


def test_notes_are_those_of_the_version_or_of_what_is_unreleased(release):
    changelog = "# Changelog\n\n## Unreleased\n\n### Added\n- b\n\n## 0.1.0 - 2026-01-01\n\n- a\n"
    assert release.section(changelog, "0.1.0") == "- a"
    assert release.section(changelog, "0.2.0") == "### Added\n- b"
    with pytest.raises(SystemExit, match=r"neither 0\.3\.0 nor"):
        release.section("# Changelog\n", "0.3.0")
