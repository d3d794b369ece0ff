"""Figures of a study, in the house style; each is drawn from the same functions as the tables."""

from collections.abc import Callable
from typing import Any

from symboliclight.measure.raster import SITES
from symboliclight.show.plots import COLOURS, render, style
from symboliclight.study.silence import deepest, kind_mean, sparsity_points, traffic
from symboliclight.study.stats import paired, pooled, spread
from symboliclight.study.tables import Evidence, loss, million, others, seeds_of


def figures(e: Evidence) -> dict[str, Callable[[str], bytes]]:
    """Name -> a function from "svg" or "png" to the bytes; only figures that there is something to draw for."""
    found: dict[str, Callable[[str], bytes]] = {}
    if any(e.budgets(label) for label in e.labels("main")):
        found["budgets"] = lambda form: budgets(e, form)
        found["curves"] = lambda form: curves(e, form)
    if any(e.budgets(e.study.reference, label) for label in others(e)):
        found["gaps"] = lambda form: gaps(e, form)
    if _ablated(e):
        found["ablations"] = lambda form: ablations(e, form)
    if deepest(e) and e.of(e.study.reference, deepest(e) or 0)[0][1]["sparsity"]["trained"]["sites"]:
        found["silence"] = lambda form: silence(e, form)
    if any(label in e.labels("sparsity") for label, _ in sparsity_points(e)):
        found["sparsity"] = lambda form: sparsity(e, form)
    return found


def _tokens(e: Evidence, axis: Any) -> None:
    """A logarithmic axis of tokens, marked at the budgets."""
    marks = sorted({tokens for label in e.labels("main") for tokens in e.budgets(label)})
    axis.set_xscale("log", base=2)
    axis.set_xticks(marks, [million(tokens) for tokens in marks])
    axis.minorticks_off()


def budgets(e: Evidence, form: str) -> bytes:
    """Test loss against the budget; bars are standard deviations over seeds."""
    with style() as plt:
        figure, axes = plt.subplots(figsize=(9, 3.8))
        for colour, label in zip(COLOURS, e.labels("main"), strict=False):
            found = [(tokens, spread([loss(b) for _, b in e.of(label, tokens)])) for tokens in e.budgets(label)]
            if found:
                axes.errorbar([t for t, _ in found], [s.mean for _, s in found], [s.sd or 0 for _, s in found],
                              fmt="o-", color=colour, capsize=3, ms=4, label=label)
        axes.set(xlabel="tokens of training", ylabel="test loss, nats a token")
        _tokens(e, axes)
        axes.legend()
        return render(figure, form)


def curves(e: Evidence, form: str) -> bytes:
    """Validation loss during every run of the main group; one line a run."""
    with style() as plt:
        figure, axes = plt.subplots(figsize=(9, 3.8))
        for colour, label in zip(COLOURS, e.labels("main"), strict=False):
            first = True
            for tokens in e.budgets(label):
                for _, body in e.of(label, tokens):
                    points = body["curve"]["validation"]
                    axes.plot([p["tokens"] for p in points], [p["nats"] for p in points], color=colour, lw=0.9, ms=2,
                              marker="o", label=label if first else None)
                    first = False
        axes.set(xlabel="tokens read; each budget has its own schedule of the rate", ylabel="validation, nats a token")
        _tokens(e, axes)
        axes.legend()
        return render(figure, form)


def gaps(e: Evidence, form: str) -> bytes:
    """Reference minus each other model against the budget; bars are 95% intervals over seeds."""
    with style() as plt:
        figure, axes = plt.subplots(figsize=(9, 3.6))
        axes.axhline(0, color="black", lw=0.8)
        for i, (colour, label) in enumerate(zip(COLOURS[1:], others(e), strict=False)):
            points = []
            for tokens in e.budgets(e.study.reference, label):
                d = paired(*(seeds_of(e.of(name, tokens), loss) for name in (e.study.reference, label)))
                if d is not None:
                    points.append((tokens * 1.03**i, d.mean, d.half or 0))
            if points:
                x, y, bars = zip(*points, strict=True)
                axes.errorbar(x, y, bars, fmt="o-", color=colour, capsize=3, ms=4,
                              label=f"{e.study.reference} − {label}")
        axes.set(xlabel="tokens of training", ylabel="difference, nats a token")
        _tokens(e, axes)
        axes.legend()
        return render(figure, form)


def _ablated(e: Evidence) -> list[tuple[str, int]]:
    return [(label, tokens) for label in e.labels("ablation") if label != e.study.reference
            for tokens in e.budgets(label, e.study.reference)]


def ablations(e: Evidence, form: str) -> bytes:
    """Each ablation minus the reference, with its pooled interval."""
    with style() as plt:
        rows = [(label, tokens, d) for label, tokens in _ablated(e)
                if (d := pooled(e.table(tokens), label, e.study.reference)) is not None]
        rows.sort(key=lambda row: -row[2].mean)
        several = len({tokens for _, tokens, _ in rows}) > 1
        figure, axes = plt.subplots(figsize=(9, 0.8 + 0.3 * len(rows)))
        axes.axvline(0, color="black", lw=0.8)
        axes.errorbar([d.mean for _, _, d in rows], range(len(rows)), xerr=[d.half or 0 for _, _, d in rows], fmt="o",
                      color=COLOURS[0], capsize=3, ms=4)
        axes.set_yticks(range(len(rows)), [f"{label}, {million(t)}" if several else label for label, t, _ in rows])
        axes.set(xlabel=f"minus {e.study.reference}, nats a token; right of 0 is worse")
        return render(figure, form)


def silence(e: Evidence, form: str) -> bytes:
    """Silent fraction of the reference by layer and by position: open, as initialised; filled, trained."""
    bodies = [body for _, body in e.of(e.study.reference, deepest(e) or 0)]
    with style() as plt:
        from matplotlib.ticker import PercentFormatter

        figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True)
        names = list(bodies[0]["sparsity"]["trained"]["sites"])
        for kind, (colour, label) in SITES.items():
            own = [site for site in names if site.split(".")[0] == kind]
            if not own:
                continue
            for when, face in (("start", "white"), ("trained", colour)):
                tables = [body["sparsity"][when] for body in bodies]
                x = [-1 if site == "encoder" else int(site.split(".")[1]) for site in own]
                y = [spread([t["sites"][site] for t in tables]) for site in own]
                left.errorbar(x, [s.mean for s in y], [s.sd or 0 for s in y], fmt="o-" if when == "trained" else "o:",
                              color=colour, mfc=face, ms=4, label=label if when == "trained" else None)
                buckets = zip(*(t["positions"] for t in tables), strict=True)
                means = [spread([m for b in bucket if (m := kind_mean(b["sites"], kind)) is not None]).mean
                         for bucket in buckets]
                right.plot(means, "o-" if when == "trained" else "o:", color=colour, mfc=face, ms=4)
        layers = sorted({int(site.split(".")[1]) for site in names if "." in site})
        left.set_xticks([-1, *layers], ["input", *map(str, layers)])
        left.set(xlabel="layer", ylabel="silent fraction", title="open: as initialised; filled: trained")
        left.yaxis.set_major_formatter(PercentFormatter(1.0))
        left.legend()
        positions = bodies[0]["sparsity"]["trained"]["positions"]
        right.set_xticks(range(len(positions)), [str(p["from"]) for p in positions], rotation=40)
        right.set(xlabel="position in the window, from (tokens)", title="mean over layers")
        return render(figure, form)


def sparsity(e: Evidence, form: str) -> bytes:
    """Perplexity against bytes read a token; bars are standard deviations over seeds."""
    with style() as plt:
        figure, axes = plt.subplots(figsize=(9, 3.8))
        termed = set(e.labels("sparsity")) | {e.study.reference}
        line = []
        for label, tokens in sparsity_points(e):
            found = [body for _, body in e.of(label, tokens)]
            x = spread([traffic(b)["bytes"] / 1e6 for b in found])
            y = spread([b["test"]["mean"]["token_weighted"]["perplexity"] for b in found])
            colour = COLOURS[0] if label in termed else COLOURS[1]
            axes.errorbar(x.mean, y.mean, y.sd or 0, x.sd or 0, fmt="o", color=colour, capsize=3)
            axes.annotate(label, (x.mean, y.mean), xytext=(6, 6), textcoords="offset points", fontsize=8)
            if label in termed:
                line.append((x.mean, y.mean))
        if line:
            axes.plot(*zip(*sorted(line), strict=True), color=COLOURS[0], lw=1)
        axes.set(xlabel="MB of weights, keys and values read a token, at two bytes each", ylabel="test perplexity")
        return render(figure, form)
