"""Does the order of the families survive a change of law, of N, of target, of the fitted loss?"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

Entry = dict[str, Any]
CHOICES = ("law", "target", "size", "loss")
TENABLE = 3.0
"""Times the residual scatter of the best law; more, and the law plainly leaves something out (such as tokens)."""


def rankings(entries: Sequence[Entry], families: Sequence[str]) -> list[Entry]:
    """One ranking for every (law, target, N, loss): families from the steepest exponent down.

    `usable` is false where a family's exponent is missing or not identified, or where the law misses the data by more
    than `TENABLE` times what the best law for that target does: such a ranking says nothing.
    """
    groups: dict[tuple[Any, ...], dict[str, Entry]] = {}
    for entry in entries:
        key = (entry["law"], entry["target"], entry["size"], entry["loss"])
        groups.setdefault(key, {})[entry["family"]] = entry
    misfit = {key: max((e["sigma_log"] or 0.0 for e in of.values()), default=0.0) for key, of in groups.items()}
    least: dict[Any, float] = {}
    for (law, target, which, loss), size in misfit.items():
        if size > 0 and all(e["identified"] for e in groups[law, target, which, loss].values()):
            least[target, loss] = min(size, least.get((target, loss), size))
    return [
        _ranking(key, of, families, tenable=misfit[key] <= TENABLE * least.get((key[1], key[3]), np.inf))
        for key, of in groups.items()
    ]


def _ranking(key: tuple[Any, ...], of: dict[str, Entry], families: Sequence[str], *, tenable: bool) -> Entry:
    law, target, size, loss = key
    usable = tenable and all(name in of and of[name]["identified"] for name in families)
    exponents = (
        {name: of[name]["params"][of[name]["exponents"][0]] for name in families if name in of} if usable else {}
    )
    return {
        "law": law,
        "variable": next(iter(of.values()))["variables"][0],
        "target": target,
        "size": size,
        "loss": loss,
        "usable": usable,
        "tenable": tenable,
        "exponents": exponents,
        "order": sorted(exponents, key=lambda name: -exponents[name]),
    }


def _unknown(primary: Entry, others: Sequence[Entry]) -> str | None:
    """Why it cannot be said whether the order survives; None if it can."""
    if not primary["tenable"]:
        return f"the law of the verdict misses the runs by more than {TENABLE:g} times what the best law does"
    if not primary["usable"]:
        return "an exponent of the law of the verdict is not identified"
    return None if others else "no other fit that describes the runs has identified exponents in the same variable"


def _differs_only(one: Entry, other: Entry, what: str) -> bool:
    """Whether two rankings differ in the choice of `what` and in nothing else."""
    return all((one[choice] == other[choice]) == (choice != what) for choice in CHOICES)


def survival(every: Sequence[Entry], primary: Entry, families: Sequence[str]) -> Entry:
    """Which pairs of families keep their order in all usable rankings by exponents in the same variable.

    `primary` is the ranking of the verdict. `survives` is None where there is nothing to compare with.
    """
    alike = [r for r in every if r["usable"] and r["variable"] == primary["variable"]]
    others = [
        r for r in alike if r is not primary and (r["target"] != "perplexity" or primary["target"] == "perplexity")
    ]
    perplexity = [r for r in alike if r["target"] == "perplexity" and _differs_only(r, primary, "target")]
    pairs = []
    for a, b in combinations(families, 2):
        if not primary["usable"]:
            break
        sign = primary["exponents"][a] > primary["exponents"][b]
        same = sum((r["exponents"][a] > r["exponents"][b]) == sign for r in others)
        pairs.append({"steeper": a if sign else b, "flatter": b if sign else a, "same": same, "of": len(others)})
    moved = {what: [r["order"] for r in others if _differs_only(r, primary, what)] for what in CHOICES}
    kept = {
        what: all(order == primary["order"] for order in orders)
        for what, orders in moved.items()
        if orders and primary["usable"]
    }
    return {
        "rankings": list(every),
        "unknown": _unknown(primary, others),
        "usable": len(alike),
        # An exponent of perplexity is about that of loss times the loss, so its order mixes in the level of the loss.
        "perplexity_order": perplexity[0]["order"] if perplexity else None,
        "primary_order": primary["order"],
        "same_order": sum(r["order"] == primary["order"] for r in others),
        "compared_with": len(others),
        "survives": all(r["order"] == primary["order"] for r in others) if others and primary["usable"] else None,
        "survives_change_of": kept,
        "pairs": pairs,
    }
