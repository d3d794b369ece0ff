"""What `symboliclight eval --operations` adds: operations a token, by part."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from symboliclight.commands.output import print_table


@contextmanager
def counted(model: Any, wanted: bool) -> Iterator[dict[str, Any]]:
    """Fill the yielded dict with {"operations": report} of the passes made inside the block, if `wanted`."""
    from symboliclight.measure.operations import OperationMeter  # needs torch, which loading the model has asked for

    found: dict[str, Any] = {}
    if not wanted:
        yield found
        return
    with OperationMeter(model) as meter:
        yield found
    found["operations"] = meter.report()


def print_operations(report: dict[str, Any]) -> None:
    """Tables of operations a token, layers of a kind together, and of the figures of NeuroBench."""
    from symboliclight.measure.operations import by_kind  # needs torch, with which the report was made

    rows = [(name + " +" * (not part["neurobench"]), *(_count(part[key]) for key in ("macs", "acs", "dense")))
            for name, part in by_kind(report).items()]
    totals = (("all", "per_token"), ("NeuroBench's part", "neurobench_per_token"))
    rows += [(name, *(_count(report[key][kind]) for kind in ("macs", "acs", "dense"))) for name, key in totals]
    print()
    print_table(("operations a token", "MAC", "AC", "dense"), rows)
    print("+ not counted by NeuroBench. Counted by neither: " + "; ".join(report["not_counted"]) + ".")
    activation = report["activation_sparsity"]
    silent = "none: no spikes" if activation is None else f"{activation:.2%}"
    print(f"footprint {report['footprint_bytes']:,} bytes, connection sparsity {report['connection_sparsity']:.2%}, "
          f"activation sparsity over all sites {silent}")


def _count(value: float) -> str:
    return f"{value:,.1f}" if value % 1 else f"{value:,.0f}"
