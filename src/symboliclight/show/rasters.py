"""Rasters as files: an interactive page of its own, a picture, or arrays.

Every function takes the texts with their rasters (`sparsity.raster`). Sites are drawn in forward order.
"""

import base64
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from symboliclight.core.errors import InputError
from symboliclight.measure.raster import SITES, Raster, raster_svg
from symboliclight.show.plots import drawable, render, style

Rasters = Mapping[str, Raster]  # text -> its spikes


def chosen(found: Raster, sites: Sequence[str] | None) -> list[str]:
    """Site names from names and kinds: `blocks` stands for every `blocks.i`. None: all but FFN hidden units.

    Raises `InputError` for a name that the raster has not.
    """
    if sites is None:
        return [name for name in found.spikes if not name.startswith("ffn.")]
    unknown = [s for s in sites if not any(s in (name, name.split(".")[0]) for name in found.spikes)]
    if unknown or not sites:
        raise InputError(f"no spike site {', '.join(unknown) or 'chosen'}; choose from: {', '.join(found.spikes)}")
    return [name for name in found.spikes if name in sites or name.split(".")[0] in sites]


def page(rasters: Rasters, model: str) -> str:
    """One HTML page with every site and unit, which needs nothing else; hover for token, unit and site."""
    texts = [{
        "text": text, "labels": found.labels,
        "sites": [{"name": name, "units": spikes.shape[1], "rate": float(spikes.mean()),
                   "colour": SITES[name.split(".")[0]][0],
                   "bits": base64.b64encode(np.packbits(spikes).tobytes()).decode()}
                  for name, spikes in found.spikes.items()],
    } for text, found in rasters.items()]
    data = json.dumps({"model": model, "texts": texts}, ensure_ascii=False).replace("<", "\\u003c")
    return Path(__file__).with_name("raster.html").read_text(encoding="utf-8").replace("/*DATA*/", data)


def picture(rasters: Rasters, sites: Sequence[str] | None = None) -> tuple[bytes, int]:
    """A PNG with a column a text and a panel a site, all units; and how many labels had no font here.

    Such labels, Chinese ones where no Chinese font is installed, stand as the token's number in its text.
    """
    names = chosen(next(iter(rasters.values())), sites)
    widths = [len(found.labels) for found in rasters.values()]
    missing = 0
    with style() as plt:
        figure, axes = plt.subplots(len(names), len(rasters), sharex="col", squeeze=False, width_ratios=widths,
                                    figsize=(max(6.0, 1.2 + 0.22 * sum(widths)), 1.0 + 0.95 * len(names)))
        fonts = drawable()
        for column, found in zip(axes.T, rasters.values(), strict=True):
            for panel, name in zip(column, names, strict=True):
                _panel(panel, name, found.spikes[name])
            shown = [label if fonts(label) else str(i) for i, label in enumerate(found.labels)]
            missing += sum(a != b for a, b in zip(shown, found.labels, strict=True))
            column[-1].set_xticks(range(len(shown)), shown, rotation=70, ha="right", rotation_mode="anchor", fontsize=8,
                                  parse_math=False)
        return render(figure, "png"), missing


def _panel(panel: Any, name: str, spikes: np.ndarray) -> None:
    """Spikes (T, units) of one site."""
    from matplotlib.colors import ListedColormap

    colour, _ = SITES[name.split(".")[0]]
    panel.imshow(spikes.T, aspect="auto", interpolation="nearest", cmap=ListedColormap(["white", colour]), vmin=0,
                 vmax=1)
    panel.grid(visible=False)
    panel.set_yticks([0, spikes.shape[1] - 1])
    panel.tick_params(labelsize=7)
    panel.set_ylabel(name, fontsize=8)
    panel.set_title(f"{spikes.mean():.1%} active", fontsize=7, loc="right", pad=2)


def vector(rasters: Rasters, sites: Sequence[str] | None = None, units: int = 48) -> str:
    """One SVG, texts below each other, `units` evenly chosen units a site; its letters are in the reader's fonts."""
    parts, y, width = [], 0, 0
    for found in rasters.values():
        svg = raster_svg(found, chosen(found, sites), units)
        w, h = (int(x) for x in re.findall(r'(?:width|height)="(\d+)"', svg.partition(">")[0]))
        parts.append(svg.replace("<svg ", f'<svg y="{y}" ', 1))
        y, width = y + h, max(width, w)
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y}" width="{width}" height="{y}" '
            f'style="background:#fff;color:#222">{"".join(parts)}</svg>\n')


def arrays(rasters: Rasters) -> bytes:
    """An .npz: of text number i `i/text`, `i/labels` (T,) and for each site `i/SITE` (T, units) bool."""
    found: dict[str, np.ndarray] = {}
    for i, (text, one) in enumerate(rasters.items()):
        found |= {f"{i}/text": np.array(text), f"{i}/labels": np.array(one.labels)}
        found |= {f"{i}/{name}": spikes for name, spikes in one.spikes.items()}
    out = io.BytesIO()
    np.savez_compressed(out, **found)  # type: ignore[arg-type]
    return out.getvalue()
