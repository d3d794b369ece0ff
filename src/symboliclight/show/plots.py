"""Charts in one style: colour-blind safe, few lines, text that stays text in SVG."""

import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from symboliclight.core.errors import InputError
from symboliclight.measure.raster import SITES

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe-Ito
_CJK = ("Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Zen Hei", "Microsoft YaHei", "PingFang SC")


@contextmanager
def style() -> Iterator[Any]:
    """`matplotlib.pyplot` in the house style. Raises `InputError` where matplotlib is missing.

    Its own font has no Chinese; the first Chinese font found on the machine stands behind it.
    """
    try:
        import matplotlib
        from matplotlib import font_manager
    except ImportError as error:
        raise InputError("charts need matplotlib: pip install 'symboliclight[docs]'") from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    installed = {font.name for font in font_manager.fontManager.ttflist}
    family = ["DejaVu Sans", *[f for f in _CJK if f in installed][:1]]
    with plt.rc_context({
        "svg.fonttype": "none", "svg.hashsalt": "symboliclight", "font.family": family, "font.size": 10,
        "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25,
        "axes.prop_cycle": plt.cycler(color=COLOURS), "legend.frameon": False, "axes.titlesize": 11,
        "figure.constrained_layout.use": True,
    }):
        yield plt


def drawable() -> Callable[[str], bool]:
    """Whether the fonts of the running style have every character of a text."""
    import matplotlib
    from matplotlib import font_manager

    known: set[int] = set()
    for family in matplotlib.rcParams["font.family"]:
        known |= font_manager.get_font(font_manager.findfont(family)).get_charmap().keys()
    return lambda text: all(ord(c) in known for c in text)


def render(figure: Any, form: str = "svg") -> bytes:
    """The bytes of a figure, "svg" or "png", the same for the same figure; the figure is closed."""
    import matplotlib.pyplot as plt

    out = io.BytesIO()
    figure.savefig(out, format=form, dpi=160, metadata={"Date": None} if form == "svg" else None)
    plt.close(figure)
    return out.getvalue()


def plot_sparsity(sparsity: dict[str, Any], form: str = "svg") -> bytes:
    """Silent fraction by layer, and by position in the window averaged over the layers of each kind of site.

    `sparsity` is that entry of what `evaluate` returns.
    """
    if not sparsity["sites"]:
        raise InputError("this evaluation has no spike sites to draw; use a model of the symboliclight family")
    with style() as plt:
        from matplotlib.ticker import PercentFormatter

        figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True)
        for kind, (colour, label) in SITES.items():
            points = [(_layer(site), silent) for site, silent in sparsity["sites"].items() if site.startswith(kind)]
            if not points:
                continue
            left.plot(*zip(*points, strict=True), "o-", color=colour, ms=5, label=label)
            buckets = [[x for site, x in b["sites"].items() if site.startswith(kind)] for b in sparsity["positions"]]
            right.plot([sum(b) / len(b) for b in buckets], "o-", color=colour, ms=4)
        layers = sorted({_layer(site) for site in sparsity["sites"]})
        left.set_xticks(layers, ["input" if i < 0 else str(i) for i in layers])
        left.set(xlabel="layer", ylabel="silent fraction", title="by layer")
        left.yaxis.set_major_formatter(PercentFormatter(1.0))
        names = [f"{b['from']}" if b["to"] - b["from"] == 1 else f"{b['from']}–{b['to'] - 1}"
                 for b in sparsity["positions"]]
        right.set_xticks(range(len(names)), names, rotation=40, ha="right")
        right.set(xlabel="position in the window (tokens)", title="by position, mean over layers")
        left.legend()
        return render(figure, form)


def plot_losses(runs: dict[str, list[dict[str, Any]]], form: str = "svg") -> bytes:
    """Learning curves. `runs`: label -> points {event: "train" or "validation", tokens, nats}, nats a token."""
    with style() as plt:
        figure, axes = plt.subplots(figsize=(9, 3.6))
        for colour, (label, points) in zip(COLOURS, runs.items(), strict=False):
            looks: dict[str, dict[str, Any]] = {
                "train": {"lw": 0.8, "alpha": 0.5}, "validation": {"marker": "o", "ms": 4, "label": label}}
            for event, look in looks.items():
                chosen = [(p["tokens"], p["nats"]) for p in points if p["event"] == event]
                if chosen:
                    axes.plot(*zip(*chosen, strict=True), color=colour, **look)
        axes.set(xlabel="tokens read", ylabel="nats a token")
        axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1e6:g} M")
        axes.legend()
        return render(figure, form)


def plot_parts(profiles: dict[str, list[dict[str, Any]]], form: str = "svg") -> bytes:
    """Seconds of each part of a training step, with its floor. `profiles`: model -> parts (`benchmarks.parts`)."""
    with style() as plt:
        figure, axes = plt.subplots(figsize=(9, 0.5 + 0.45 * sum(len(p) for p in profiles.values())))
        rows = [(f"{model}: {p['part']}", p, colour)
                for (model, parts), colour in zip(profiles.items(), COLOURS, strict=False) for p in parts]
        for y, (_, part, colour) in enumerate(rows):
            axes.barh(y, part["seconds"], color=colour)
            axes.plot([part["floor_s"]] * 2, [y - 0.4, y + 0.4], color="black", lw=2)
        axes.set_yticks(range(len(rows)), [label for label, _, _ in rows])
        axes.invert_yaxis()
        axes.set(xlabel="seconds a step; the black line is the floor that arithmetic or bytes set")
        return render(figure, form)


def plot_depth(points: list[dict[str, Any]], layers: int, form: str = "svg") -> bytes:
    """Perplexity and speed against the mean layers run, one point an entropy limit (`benchmarks.quality`)."""
    with style() as plt:
        figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), sharex=True)
        x = [p["layers"] for p in points]
        left.plot(x, [p["perplexity"] for p in points], "o-", color=COLOURS[0])
        right.plot(x, [p["tokens_per_s"] for p in points], "o-", color=COLOURS[1])
        left.set(xlabel="mean layers run", ylabel="perplexity", xlim=(0, layers + 0.5))
        right.set(xlabel="mean layers run", ylabel="tokens/s", ylim=0)
        return render(figure, form)


def plot_decode(curves: dict[str, list[dict[str, Any]]], form: str = "svg") -> bytes:
    """Decode speed against active inputs, threads, context and batch (`benchmarks.decode`)."""
    with style() as plt:
        figure, axes = plt.subplots(2, 2, figsize=(9, 6))
        looks = {"sparsity": ("active", "active share of spike-fed inputs", "linear"),
                 "threads": ("threads", "threads", "linear"), "context": ("context", "context, tokens", "log"),
                 "batch": ("batch", "sequences", "log")}
        for panel, (name, (key, label, scale)) in zip(axes.flat, looks.items(), strict=True):
            lines = [k for k in curves[name][0] if k not in (key, "tcam", "down")]
            for colour, line in zip(COLOURS, lines, strict=False):
                panel.plot([p[key] for p in curves[name]], [p[line] for p in curves[name]], "o-", color=colour, ms=4,
                           label=line)
            panel.set(xlabel=label, ylabel="tokens/s", ylim=0, xscale=scale)
            if key != "active":
                panel.set_xticks([p[key] for p in curves[name]], [f"{p[key]:g}" for p in curves[name]], minor=False)
                panel.minorticks_off()
        axes[0, 0].legend(fontsize=8)
        figure.legend(*axes[1, 1].get_legend_handles_labels(), fontsize=8, ncols=len(lines), loc="outside lower center")
        return render(figure, form)


def plot_pairs(result: Mapping[str, Any], form: str = "svg") -> bytes:
    """Accuracy on minimal pairs by phenomenon, with 95% intervals and chance (`symboliclight eval --pairs`)."""
    rows = {**(result["phenomena"] or result["paradigms"]), "all pairs": result["all"]}
    with style() as plt:
        from matplotlib.ticker import PercentFormatter

        figure, axes = plt.subplots(figsize=(7, 0.8 + 0.28 * len(rows)))
        shares = [row["accuracy"] for row in rows.values()]
        around = [[row["accuracy"] - row["interval"][0] for row in rows.values()],
                  [row["interval"][1] - row["accuracy"] for row in rows.values()]]
        axes.barh(range(len(rows)), shares, xerr=around, color=[COLOURS[0]] * (len(rows) - 1) + [COLOURS[1]])
        axes.axvline(0.5, color="black", ls=":")
        axes.set_yticks(range(len(rows)), [f"{name} ({row['count']:,})" for name, row in rows.items()])
        axes.invert_yaxis()
        axes.set(xlim=(0, 1), xlabel="pairs that are right, and 95% intervals")
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        return render(figure, form)


def plot_energy(result: Mapping[str, Any], form: str = "svg") -> bytes:
    """Energy of a token and the break-even curves of the first spiking model (`symboliclight energy --out`).

    Above: operations alone, and with memory traffic to DRAM, never in one panel. Below: with memory in 32 KB SRAM,
    against the firing rate, at the first and the last set of constants.
    """
    models, found = result["models"], result["break_even"][:1]
    with style() as plt:
        figure, axes = plt.subplots(2 if found else 1, 2, figsize=(10, 7 if found else 4), squeeze=False)
        sets = list(models[0]["op_only_uj"])
        far = [{s: found["dram"]["gather"] for s, found in m["with_memory_uj"].items()} for m in models]
        for panel, title, values in ((axes[0][0], "operations alone", [m["op_only_uj"] for m in models]),
                                     (axes[0][1], "operations and memory, weights in DRAM", far)):
            for i, (name, colour) in enumerate(zip(sets, COLOURS, strict=False)):
                places = [y + (i - (len(sets) - 1) / 2) * 0.8 / len(sets) for y in range(len(models))]
                panel.barh(places, [v[name] for v in values], 0.8 / len(sets), color=colour,
                           label=name.rpartition("-")[2])
            panel.set_yticks(range(len(models)), [m["label"] for m in models])
            panel.invert_yaxis()
            panel.set(xlabel="µJ a token", title=title, xscale="log")
        axes[0][0].legend()
        for even in found:
            _break_even_panels(axes[1], even, sets)
        return render(figure, form)


def _break_even_panels(axes: Any, found: Mapping[str, Any], sets: list[str]) -> None:
    """One panel for the first and one for the last set: energy against the firing rate, weights in 32 KB SRAM."""
    for panel, name in zip(axes, (sets[0], sets[-1]), strict=True):
        lines = [c for c in found["curves"] if c["constants"] == name and c["memory"] == "sram-32kb"]
        for line, colour in zip(lines, COLOURS, strict=False):
            panel.plot(line["rates"], line["spiking_uj"], color=colour, label=f"spiking, {line['dataflow']}")
        panel.axhline(lines[0]["dense_uj"], color="black", label="dense twin")
        panel.axvline(found["rate"], color="black", ls=":", label="this model's rate, mean over weights")
        panel.set(xlabel="firing rate of every site", ylabel="µJ a token", ylim=0,
                  title=f"{found['model']}: {name.rpartition('-')[2]}, with memory, 32 KB SRAM")
    axes[0].legend(fontsize=8)


def _layer(site: str) -> int:
    return -1 if site == "encoder" else int(site.split(".")[1])
