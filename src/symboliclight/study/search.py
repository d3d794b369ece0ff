"""The table of a search: every model at its better rate beside the frame, and the rule (docs/results/v1-plus.md).

Runs that differ in rate and seed alone are one model. Its better rate is the one with the lower mean loss over its
seeds; a rate at which a run diverged is out.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import inf

from symboliclight.measure.energy.parts import spike_fed_share
from symboliclight.study.plan import Run, changes, identity
from symboliclight.study.silence import traffic
from symboliclight.study.stats import spread
from symboliclight.study.tables import Body, Evidence, Table, loss, mean_sd

MARGIN = 0.02  # nats: less is no difference
SILENT = 0.9  # of every site
MORE = 0.01  # of the multiply-accumulates: what counts as a larger share
HEAD = ("model", "change", "runs", "better rate", "nats/token", "minus the frame, by seed", "least silent site",
        "spikes feed", "M MAC", "M AC", "MB read", "tokens/s", "by the rule")

Measured = list[tuple[Run, Body]]


def candidates(e: Evidence) -> Table:
    """Every model of a study on the validation split, in the order of the file; empty for any other study."""
    if e.study.split == "test":
        return Table("search", HEAD, [])
    models: dict[str, list[Run]] = {}
    for run in e.study.runs:
        models.setdefault(_model(run), []).append(run)
    known: dict[str, Measured] = {}
    for run, body in (*e.found, *e.diverged):
        known.setdefault(_model(run), []).append((run, body))
    reference = next(run for run in e.study.runs if run.label == e.study.reference)
    frame = better(known.get(_model(reference), []))
    rows = [_row(runs, known[model], reference, frame) for model, runs in models.items() if model in known]
    return Table("search", HEAD, rows, f"On the {e.study.split} split. MB: weights, keys and values of a token at two "
                 "bytes each.")


def judge(differences: Sequence[float], silent: float, share: float, frame_share: float) -> str:
    """What the rule says of a change: nats above the frame's by seed, silence of its least silent site in [0, 1], and
    the share of multiply-accumulates that spikes feed, its own and the frame's."""
    mean = sum(differences) / len(differences)
    wins = mean < -MARGIN and all(d < 0 for d in differences)
    if wins and silent < SILENT:
        return "again, with rate_weight"
    equal = abs(mean) <= MARGIN and share >= frame_share + MORE
    return "kept" if (wins or equal) and silent >= SILENT else "dropped"


def better(measured: Measured) -> dict[int, tuple[Run, Body]]:
    """Seed -> run and result at the better rate of a model; empty if every rate diverged or none has a result."""
    rates: dict[float, dict[int, tuple[Run, Body]]] = {}
    for run, body in measured:
        rates.setdefault(run.config.train.lr, {})[run.seed] = run, body
    means = {lr: sum(inf if "diverged" in b else loss(b) for _, b in by.values()) / len(by) for lr, by in rates.items()}
    best = min(means, key=means.__getitem__, default=None)
    return {} if best is None or means[best] == inf else rates[best]


def _model(run: Run) -> str:
    """What the runs of one model share."""
    return identity(replace(run.config, train=replace(run.config.train, lr=1.0, min_lr=0.0, seed=0)), "")


def _row(runs: Sequence[Run], measured: Measured, reference: Run, frame: dict[int, tuple[Run, Body]]
         ) -> tuple[str, ...]:
    """One model: its runs in the study, those measured, and the frame at its better rate."""
    own, ours, theirs = better(measured), runs[0].config, reference.config
    what = changes(ours, theirs) if ours.model.family == theirs.model.family else {}
    head = (runs[0].label.rpartition("-")[0], ", ".join(f"{k} = {v}" for k, v in what.items()),
            f"{len(measured)} of {len(runs)}")
    if not own:
        return (*head, *("",) * (len(HEAD) - len(head) - 1), "diverged")
    bodies = [body for _, body in own.values()]
    paired = sorted(set(own) & set(frame)) if _model(runs[0]) != _model(reference) else []
    differences = [loss(own[seed][1]) - loss(frame[seed][1]) for seed in paired]
    silent = {site: spread([b["sparsity"]["trained"]["sites"][site] for b in bodies]).mean
              for site in bodies[0]["sparsity"]["trained"]["sites"]}
    least, share = min(silent, key=silent.__getitem__, default=""), spike_fed_share(ours.model)
    verdict = ""
    if runs[0].group == "ablation":
        whole = len(measured) == len(runs) and len(differences) == len(own)
        verdict = judge(differences, silent[least], share, spike_fed_share(theirs.model)) if whole else "unfinished"

    def figure(values: Sequence[float], digits: int = 2) -> str:
        return mean_sd(spread(values), digits)

    counts = [b["operations"]["per_token"] for b in bodies]
    return (*head, f"{next(iter(own.values()))[0].config.train.lr:g}", figure([loss(b) for b in bodies], 3),
            " ".join(f"{d:+.3f}" for d in differences), f"{least} {silent[least]:.1%}" if least else "",
            f"{share:.1%}", figure([c["macs"] / 1e6 for c in counts]), figure([c["acs"] / 1e6 for c in counts]),
            figure([traffic(b)["bytes"] / 1e6 for b in bodies]),
            figure([b["training"]["tokens_per_second"] for b in bodies], 0), verdict)
