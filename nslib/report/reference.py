"""The paper's printed tables, and ours beside them."""

from __future__ import annotations

import pandas as pd

from nslib.config import TABLE2
from nslib.evaluate.comparison import table2_row
from nslib.evaluate.suite import Evaluation
from nslib.runtime import data_path

# Printed rows of methods that are not run here.
QUOTED = (
    "ViT-B + PR", "ViT-B + RandAugment + PR", "ViT-B + AugMix + PR", "ViT-B + RobustViT", "ViT-B + DAT",
    "ViT-B + DAT + NS",
)  # fmt: skip


def printed(name: str) -> pd.DataFrame:
    """A table of the paper as printed, such as `table2`.

    Raises:
        FileNotFoundError: there is no such table; names those there are.
    """
    path = data_path("reference", f"{name}.csv")
    if not path.is_file():
        known = ", ".join(p.stem for kind in ("table", "figure") for p in sorted(path.parent.glob(f"{kind}*.csv")))
        raise FileNotFoundError(f"no printed table {name!r}: there are {known}")
    return pd.read_csv(path)


def beside_table2(*evaluations: Evaluation) -> pd.DataFrame:
    """Table 2 with a row for each evaluation above the printed ones; a column that was not measured stays empty.

    Column `source` tells them apart: ours, printed (in the paper), quoted (printed, of a method that is not run here).
    """
    rows = []
    for evaluation in evaluations:
        row = table2_row(evaluation)
        if not row.keys() >= {*TABLE2} or not evaluation.published_c:
            row.pop("average")  # of other columns than the printed one, or with an error that is no mCE
        if "c" in row and not evaluation.published_c:
            row["corruption error"] = row.pop("c")
        rows.append({"model": evaluation.model, "source": "ours", "seeds": evaluation.seeds, **row})
    ours = pd.DataFrame(rows, columns=["model", "source", "seeds", *TABLE2, "average", "corruption error"])
    theirs = printed("table2")
    source = theirs.model.isin(QUOTED).map({True: "quoted", False: "printed"})
    return pd.concat([ours, theirs.assign(source=source)], ignore_index=True).astype({"seeds": "Int64"})
