"""The tables of the RAHF paper (arXiv 2312.10240, section 5): scores, heat maps, misaligned words."""

from collections.abc import Iterable, Mapping, Sequence

from src.data.batch import HEAT_MAPS, SCORES
from src.runtime.progress import columns

HEAT_MAP_METRICS = {
    "mse": "MSE", "mse_empty": "MSE, GT = 0", "cc": "CC", "kld": "KLD", "sim": "SIM", "nss": "NSS",
    "auc_judd": "AUC-Judd",
}  # fmt: skip
CORRELATIONS = {"plcc": "PLCC", "srcc": "SRCC"}
WORDS = {"word_precision": "precision", "word_recall": "recall", "word_f1": "F1"}


def paper_tables(measured: Mapping[str, Mapping[str, float]], conventions: Mapping[str, object]) -> str:
    """The metrics of models by the models' names, without the name of the split.

    A model is left out of a table in which it has no metric, and a target that no model predicts.

    `conventions`: of the heat maps' metrics, printed below their table.
    """
    told = ", ".join(f"{name} {value}" for name, value in conventions.items() if value is not None)
    tables = []
    for what, targets, metrics in (
        ("scores", (*SCORES, "mean"), CORRELATIONS),
        ("heat maps", HEAT_MAPS, HEAT_MAP_METRICS),
    ):
        rows = [(target, [f"{target}_{key}" for key in metrics]) for target in targets]
        tables.append(_table(what, rows, metrics.values(), measured))
    rows = [
        (kind, [f"{key}{end}" for key in WORDS])
        for kind, end in (("all words", ""), ("mean over images", "_per_sample"))
    ]
    tables.append(_table("misaligned words", rows, WORDS.values(), measured))
    if tables[1]:
        tables[1] += f"\n({told})"
    tables.append(columns(["", "mean"], [[model, metrics["mean"]] for model, metrics in measured.items()]))
    return "\n\n".join(table for table in tables if table)


def _table(
    what: str,
    rows: Sequence[tuple[str, Sequence[str]]],
    metrics: Iterable[str],
    measured: Mapping[str, Mapping[str, float]],
) -> str:
    """A row for each (target, names of its metrics) and model; "" if no model has any.

    One model is not named in each row.
    """
    several, known = len(measured) > 1, {name for _, names in rows for name in names}
    models = [model for model, metrics in measured.items() if known & metrics.keys()]
    filled = [
        [target, *([model] if several else []), *(measured[model].get(name) for name in names)]
        for target, names in rows
        if any(name in measured[model] for model in models for name in names)
        for model in models
    ]
    return columns([what, *(["model"] if several else []), *metrics], filled) if filled else ""
