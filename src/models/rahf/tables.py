"""The tables of the RAHF paper (arXiv 2312.10240, section 5): scores, heat maps, misaligned words."""

from collections.abc import Mapping, Sequence

from src.data.batch import HEAT_MAPS, SCORES

HEAT_MAP_COLUMNS = {
    "mse": "MSE", "mse_empty": "MSE, GT = 0", "cc": "CC", "kld": "KLD", "sim": "SIM", "nss": "NSS",
    "auc_judd": "AUC-Judd",
}  # fmt: skip
WORD_COLUMNS = {"word_precision": "precision", "word_recall": "recall", "word_f1": "F1"}


def paper_tables(metrics: Mapping[str, float], conventions: Mapping[str, object]) -> str:
    """Metrics, without the name of the split, as the three tables, as far as they are there."""
    parts = []
    if any(name.endswith("_srcc") for name in metrics):
        rows = [[name, *(metrics.get(f"{name}_{kind}") for kind in ("plcc", "srcc"))] for name in (*SCORES, "mean")]
        parts.append(_table(["scores", "PLCC", "SRCC"], rows))
    if any(name.startswith(HEAT_MAPS[0]) for name in metrics):
        rows = [[name, *(metrics.get(f"{name}_{key}") for key in HEAT_MAP_COLUMNS)] for name in HEAT_MAPS]
        told = ", ".join(f"{name} {value}" for name, value in conventions.items() if value is not None)
        parts.append(f"{_table(['heat maps', *HEAT_MAP_COLUMNS.values()], rows)}\n({told})")
    if "word_f1" in metrics:
        rows = [[kind, *(metrics.get(f"{key}{end}") for key in WORD_COLUMNS)] for kind, end in (
            ("all words", ""), ("mean over images", "_per_sample"),
        )]  # fmt: skip
        parts.append(_table(["misaligned words", *WORD_COLUMNS.values()], rows))
    return "\n\n".join(parts)


def _table(head: Sequence[str], rows: Sequence[Sequence[str | float | None]]) -> str:
    cells = [list(head), *([f"{c:.4f}" if isinstance(c, float) else c or "-" for c in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if n == 0 else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    )
