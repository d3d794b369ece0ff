"""Tables of the texts that models write."""

from typing import Any

from symboliclight.study.silence import deepest
from symboliclight.study.stats import paired, spread
from symboliclight.study.tables import Body, Evidence, Run, Table, interval, mean_sd, million, probability

FIGURES = {"rep4": "repeated 4-grams", "distinct_1": "distinct-1", "distinct_2": "distinct-2",
           "distinct_3": "distinct-3"}


def _written(e: Evidence, label: str, tokens: int) -> list[tuple[Run, Body]]:
    return [(run, body) for run, body in e.of(label, tokens) if "generation" in body]


def variety(e: Evidence) -> Table:
    """Repetition and variety by model, budget, language and rule, beside the text that really follows."""
    rows: list[tuple[str, ...]] = []
    real: dict[str, dict[str, Any]] = {}
    for label in dict.fromkeys(run.label for run in e.study.runs if run.generate):
        for tokens in e.budgets(label):
            bodies = [body["generation"] for _, body in _written(e, label, tokens)]
            for rule in bodies[0]["rules"] if bodies else ():
                for language in bodies[0]["rules"][rule]:
                    own = [b["rules"][rule][language] for b in bodies]
                    rows.append((label, million(tokens), language, rule, *(
                        mean_sd(spread([x[key] for x in own])) for key in FIGURES)))
                    real[language] = bodies[0]["held_out"][language]
    rows += [("the held-out text itself", "", language, "", *(f"{found[key]:.3f} (n=1)" for key in FIGURES))
             for language, found in real.items()]
    return Table("texts", ("model", "tokens", "language", "rule", *FIGURES.values()), rows,
                 "Continuations of 128 tokens of 16 held-out prompts of 32 tokens a language; temperature 0.7, top-k "
                 "50, and the same with the entropy-adaptive temperature (0.5 nats). Mean ± standard deviation over "
                 "seeds.")


def against(e: Evidence) -> Table:
    """The reference minus each other model that writes, paired by seed, at the deepest common budget."""
    rows = []
    ours = e.study.reference
    for label in dict.fromkeys(run.label for run in e.study.runs if run.generate and run.label != ours):
        both = [t for t in e.budgets(ours, label) if _written(e, ours, t) and _written(e, label, t)]
        tokens = deepest(e) if deepest(e) in both else max(both, default=None)
        if tokens is None:
            continue
        texts = [{run.seed: body["generation"]["rules"] for run, body in _written(e, name, tokens)}
                 for name in (ours, label)]
        for rule, languages in next(iter(texts[0].values())).items():
            for language in languages:
                d = [paired(*({seed: x[rule][language][key] for seed, x in t.items()} for t in texts))  # type: ignore
                     for key in ("rep4", "distinct_2")]
                rows.append((f"{ours} − {label}", million(tokens), language, rule,
                             *(cell for x in d for cell in (interval(x), probability(x)))))
    return Table("texts-against", ("difference", "tokens", "language", "rule", "repeated 4-grams [95%]", "p",
                                   "distinct-2 [95%]", "p"), rows, "Paired over seeds.")
