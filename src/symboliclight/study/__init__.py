"""A study: one file that lists training runs, one JSON a run, and a report. Anybody can run it on other texts."""

from symboliclight.study.plan import Run, Study, choose, read_study

__all__ = ["Run", "Study", "choose", "read_study"]
