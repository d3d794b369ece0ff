"""Tables of losses: the sweep, the main comparison, the gap as tokens grow, ablations and published orderings.

Every mean stands with its spread and its n. Losses are those of the study's split, in nats a token, all domains alike.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from symboliclight.study.plan import SWEEPS, Claim, Run, Study, changes
from symboliclight.study.results import Results
from symboliclight.study.stats import (
    Difference,
    Spread,
    against_zero,
    paired,
    pooled,
    reproduces,
    slope,
    spread,
    unpaired,
)

Body = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """A named table of texts; `note` stands below it."""

    name: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass
class Evidence:
    """What there is of a study: its finished runs with their results, and the others."""

    study: Study
    found: list[tuple[Run, Body]] = field(default_factory=list)  # measured
    diverged: list[tuple[Run, Body]] = field(default_factory=list)
    missing: list[Run] = field(default_factory=list)

    @property
    def counted(self) -> list[tuple[Run, Body]]:
        """The measured runs outside the sweeps."""
        return [(run, body) for run, body in self.found if run.group not in SWEEPS]

    def of(self, label: str, tokens: int) -> list[tuple[Run, Body]]:
        """The measured runs of a label and budget, by seed."""
        return sorted(((run, body) for run, body in self.counted if run.label == label and run.tokens == tokens),
                      key=lambda pair: pair[0].seed)

    def budgets(self, *labels: str) -> list[int]:
        """Budgets at which each label has a measured run."""
        sets = [{run.tokens for run, _ in self.counted if run.label == label} for label in labels]
        return sorted(set.intersection(*sets)) if sets else []

    def labels(self, group: str) -> list[str]:
        """Labels of a group, in the order of the file, whether they have results or not."""
        return list(dict.fromkeys(run.label for run in self.study.runs if run.group == group))

    def table(self, tokens: int) -> dict[str, dict[Any, float]]:
        """Label -> seed -> test loss, of all measured runs of one budget."""
        out: dict[str, dict[Any, float]] = {}
        for run, body in self.counted:
            if run.tokens == tokens:
                out.setdefault(run.label, {})[run.seed] = loss(body)
        return out


def evidence(study: Study, results: Results) -> Evidence:
    """Sort the runs of a study by what is known of them."""
    out = Evidence(study)
    for run in study.runs:
        body = results.get(run)
        if body is None:
            out.missing.append(run)
        else:
            (out.diverged if "diverged" in body else out.found).append((run, body))
    return out


def loss(body: Body) -> float:
    """Test loss over all domains, nats a token."""
    return body["test"]["mean"]["token_weighted"]["nats_per_token"]


def seeds_of(pairs: Iterable[tuple[Run, Body]], value: Callable[[Body], float]) -> dict[Any, float]:
    """Seed -> value."""
    return {run.seed: value(body) for run, body in pairs}


# Texts of figures.

def million(tokens: int) -> str:
    """2,000,000 -> 2 M."""
    return f"{tokens / 1e6:g} M"


def mean_sd(s: Spread, digits: int = 3, percent: bool = False) -> str:
    """`mean ± standard deviation (n)`."""
    scale, end = (100, "%") if percent else (1, "")
    sd = "" if s.sd is None else f" ± {scale * s.sd:.{digits}f}"
    return f"{scale * s.mean:.{digits}f}{sd}{end} (n={s.n})"


def interval(d: Difference | None, digits: int = 3, percent: bool = False) -> str:
    """`difference [low, high]`, the 95% interval."""
    if d is None:
        return "no pair"
    scale = 100 if percent else 1
    if d.half is None:
        return f"{scale * d.mean:+.{digits}f}, no interval (n={d.n})"
    return (f"{scale * d.mean:+.{digits}f} [{scale * (d.mean - d.half):+.{digits}f}, "
            f"{scale * (d.mean + d.half):+.{digits}f}] (n={d.n})")


def probability(d: Difference | None) -> str:
    if d is None or d.p is None:
        return ""
    return "< 1e-9" if d.p < 1e-9 else f"{d.p:.1e}" if d.p < 1e-3 else f"{d.p:.3f}"


# The tables.

def sweep(e: Evidence, group: str = "sweep") -> Table:
    """Validation loss at the end of each run of a sweep; the best rate of each row is bold."""
    runs = [run for run in e.study.runs if run.group == group]
    rates = sorted({run.config.train.lr for run in runs})
    rows = []
    for label in e.labels(group):
        ends = {run.config.train.lr: body["curve"]["validation"][-1]["nats"]
                for run, body in e.found if run.group == group and run.label == label}
        spoilt = {run.config.train.lr for run, _ in e.diverged if run.group == group and run.label == label}
        best = min(ends, key=lambda lr: ends[lr]) if ends else None
        cells = [("**{:.3f}**" if lr == best else "{:.3f}").format(ends[lr]) if lr in ends else
                 "diverged" if lr in spoilt else "" for lr in rates]
        used = sorted({run.config.train.lr for run in e.study.runs if run.label == label and run.group == "main"})
        steps = sorted({run.config.train.warmup_steps for run in runs if run.label == label})
        rows.append((label, ", ".join(map(str, steps)), *cells, ", ".join(f"{lr:g}" for lr in used)))
    budgets = ", ".join(million(t) for t in sorted({run.tokens for run in runs}))
    seeds = ", ".join(str(s) for s in sorted({run.seed for run in runs}))
    return Table(group, ("model", "warm-up, steps", *(f"lr {lr:g}" for lr in rates), "used in the main table"), rows,
                 f"Validation loss in nats a token after {budgets} tokens, seed {seeds}; one run a cell (n=1), so no "
                 "spread.")


def main(e: Evidence) -> Table:
    """All models of the main group by budget."""
    rows = []
    for label in e.labels("main"):
        for tokens in e.budgets(label):
            found = e.of(label, tokens)
            mean = [body["test"]["mean"] for _, body in found]
            rows.append((
                label, f"{found[0][1]['parameters']:,}", million(tokens),
                mean_sd(spread([m["token_weighted"]["nats_per_token"] for m in mean])),
                mean_sd(spread([m["token_weighted"]["perplexity"] for m in mean]), 1),
                mean_sd(spread([m["unweighted"]["bits_per_byte"] for m in mean])),
                mean_sd(spread([body["training"]["tokens_per_second"] for _, body in found]), 0)))
    return Table("main", ("model", "parameters", "tokens", "nats/token", "perplexity", "bits/byte, mean of domains",
                          "tokens/s in training"), rows, "Test split; mean ± standard deviation over seeds.")


def domains(e: Evidence, tokens: int) -> Table:
    """Loss by domain of the models of the main group."""
    labels = [label for label in e.labels("main") if e.of(label, tokens)]
    names = sorted({name for label in labels for _, body in e.of(label, tokens) for name in body["test"]["domains"]})
    rows = [(name, *(mean_sd(spread([b["test"]["domains"][name]["nats_per_token"] for _, b in e.of(label, tokens)]))
                     for label in labels)) for name in names]
    rows += [(f"language {name}", *(
        mean_sd(spread([b["test"]["languages"][name]["nats_per_token"] for _, b in e.of(label, tokens)]))
        for label in labels)) for name in ("zh", "en", "other")
        if labels and all(name in b["test"]["languages"] for label in labels for _, b in e.of(label, tokens))]
    return Table(f"domains-{tokens}", (f"{million(tokens)} tokens, nats/token", *labels), rows)


def domain_gaps(ours: list[tuple[Run, Body]], theirs: list[tuple[Run, Body]]) -> Difference | None:
    """Ours - theirs paired over domains, each the mean over the seeds that both have."""
    other = {run.seed: body for run, body in theirs}
    both = [(body, other[run.seed]) for run, body in ours if run.seed in other]
    if not both:
        return None
    names = both[0][0]["test"]["domains"]
    return against_zero([sum(a["test"]["domains"][n]["nats_per_token"] - b["test"]["domains"][n]["nats_per_token"]
                             for a, b in both) / len(both) for n in names])


def others(e: Evidence) -> list[str]:
    return [label for label in e.labels("main") if label != e.study.reference]


def gaps(e: Evidence) -> Table:
    """The reference minus each other model, by budget, paired over seeds and over domains."""
    rows = []
    for label in others(e):
        for tokens in e.budgets(e.study.reference, label):
            ours, theirs = e.of(e.study.reference, tokens), e.of(label, tokens)
            seeds, over = paired(seeds_of(ours, loss), seeds_of(theirs, loss)), domain_gaps(ours, theirs)
            found = [list(seeds_of(runs, loss).values()) for runs in (ours, theirs)]
            apart = unpaired(*found) if seeds is None else None  # no seed in common
            cell = f"{interval(apart)}, unpaired" if apart else interval(seeds)
            rows.append((f"{e.study.reference} − {label}", million(tokens), cell, probability(apart or seeds),
                         interval(over), probability(over)))
    return Table("gaps", ("difference, nats/token", "tokens", "over seeds [95%]", "p", "over domains [95%]", "p"), rows,
                 "Paired differences, below 0 where the first model is better; Student's t. Over seeds: would other "
                 "runs say the same? Over domains: would other texts? Unpaired, by Welch's t, where no seed is shared.")


def trend(e: Evidence, label: str) -> tuple[Difference | None, int]:
    """Change of the gap (reference - label) with each doubling of the tokens: slope of each seed, and budgets used."""
    points: dict[int, list[tuple[float, float]]] = {}
    for tokens in e.budgets(e.study.reference, label):
        ours, theirs = (seeds_of(e.of(name, tokens), loss) for name in (e.study.reference, label))
        for seed in set(ours) & set(theirs):
            points.setdefault(seed, []).append((math.log2(tokens), ours[seed] - theirs[seed]))
    slopes = [slope(p) for p in points.values() if len(p) > 1]
    return (against_zero(slopes) if slopes else None), max((len(p) for p in points.values()), default=0)


def trends(e: Evidence) -> Table:
    """How each gap moves as tokens grow."""
    rows = []
    for label in others(e):
        found, budgets = trend(e, label)
        if found is not None:
            word = "undecided" if found.half is None or abs(found.mean) <= found.half else (
                "grows less favourable" if found.mean > 0 else "grows more favourable")
            rows.append((f"{e.study.reference} − {label}", f"{budgets}", interval(found), probability(found), word))
    return Table("trends", ("difference", "budgets", "change for each doubling of tokens, nats [95%]", "p",
                            f"for {e.study.reference}"), rows,
                 "Least-squares slope of each seed's gap over log2(tokens); the interval is over seeds.")


def ablations(e: Evidence, group: str = "ablation") -> Table:
    """Every label of a group beside the reference, with what it changes."""
    rows, reference = [], next((run for run in e.study.runs if run.label == e.study.reference), None)
    for label in [e.study.reference, *(x for x in e.labels(group) if x != e.study.reference)]:
        for tokens in e.budgets(label, e.study.reference):
            if not any(r.tokens == tokens for r in e.study.runs if r.group == group):
                continue
            found = e.of(label, tokens)
            d = None if label == e.study.reference else pooled(e.table(tokens), label, e.study.reference)
            what = changes(found[0][0].config, reference.config) if reference else {}
            rows.append((label, ", ".join(f"{k} = {v}" for k, v in what.items()) if d else "", million(tokens),
                         f"{found[0][1]['parameters']:,}", mean_sd(spread([loss(b) for _, b in found])),
                         interval(d) if d else "", probability(d), sign(d) if d else ""))
    return Table(group, ("model", "change", "tokens", "parameters", "nats/token",
                         f"minus {e.study.reference} [95%, pooled]", "p", "verdict"), rows,
                 "The interval pools the spread of all runs of one budget; see the protocol.")


def sign(d: Difference) -> str:
    if d.half is None or abs(d.mean) <= d.half:
        return "undecided"
    return "worse" if d.mean > 0 else "better"


def claims(e: Evidence) -> Table:
    """Published orderings and whether they reproduce here."""
    rows = []
    for claim in e.study.claims:
        budgets = e.budgets(claim.better, claim.worse)
        for tokens in budgets:
            d = pooled(e.table(tokens), claim.better, claim.worse)
            rows.append((*_claim(claim), million(tokens), interval(d), probability(d), reproduces(d)))
        if not budgets:
            rows.append((*_claim(claim), "", "no runs yet", "", "undecided"))
    return Table("claims", ("published ordering", "published", "tokens", "ours: first − second, nats [95%, pooled]",
                            "p", "reproduces"), rows,
                 "yes: the interval lies below 0; no: above 0; undecided: it holds 0, or there is none.")


def _claim(claim: Claim) -> tuple[str, str]:
    return f"{claim.better} beats {claim.worse}", claim.published


def missing(e: Evidence) -> Table:
    """Runs that the study lists and that have no result yet, or diverged."""
    rows: dict[tuple[str, str, str, str], list[str]] = {}
    for state, runs in (("missing", e.missing), ("diverged", [run for run, _ in e.diverged])):
        for run in runs:
            key = (run.group, run.label, million(run.tokens), state)
            seed = f"{run.seed}" + (f" (lr {run.config.train.lr:g})" if run.group in SWEEPS else "")
            rows.setdefault(key, []).append(seed)
    return Table("missing", ("group", "model", "tokens", "state", "seeds"),
                 [(*key, ", ".join(seeds)) for key, seeds in rows.items()])
