"""The results that are committed are runs of the study that is committed, and all of one set of data."""

from pathlib import Path

from symboliclight.study import read_study
from symboliclight.study.results import Results, read_result

ROOT = Path(__file__).parents[2]


def test_every_committed_result_is_a_run_of_the_study():
    study, results = read_study(ROOT / "studies" / "v1.toml"), Results(ROOT / "results" / "study" / "v1")
    expected = {results.path(run): run for run in study.runs}
    for path in (ROOT / "results" / "study" / "v1").glob("*-*.json"):
        body, run = read_result(path), expected[path]
        assert (body["label"], body["group"], body["seed"]) == (run.label, run.group, run.seed)
        assert "/" not in body["machine"]["processor"] and path.stat().st_size < 100_000
