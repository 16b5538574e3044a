"""Samples of images and tables: scikit-learn's data sets in common file formats, and a series from the library."""

import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet


def digits(directory: Path) -> Path:
    """1,797 scanned digits of 8×8 grey pixels, in directories named by their labels."""
    from PIL import Image
    from sklearn.datasets import load_digits

    data = load_digits()
    for number, (image, label) in enumerate(zip(data.images, data.target, strict=True)):
        path = directory / "digits" / str(label) / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 255 / 16).astype(np.uint8)).save(path)
    return directory / "digits"


def diabetes(directory: Path) -> Path:
    """442 patients: age, sex, body mass, six blood values, and disease progression after a year. CSV."""
    from sklearn.datasets import load_diabetes

    table = _table(load_diabetes(scaled=False), "progression")
    # The data set writes 1 and 2, which are categories, not quantities.
    sexes = pa.array([f"sex {value:g}" for value in table["sex"].to_pylist()])
    table = table.set_column(table.column_names.index("sex"), "sex", sexes)
    pyarrow.csv.write_csv(table, directory / "diabetes.csv")
    return directory / "diabetes.csv"


def breast_cancer(directory: Path) -> Path:
    """569 tumours, malignant or benign, with 30 measures of their cells. Parquet."""
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer()
    table = _table(data, "diagnosis", data.target_names[data.target])
    pyarrow.parquet.write_table(table, directory / "breast-cancer.parquet")
    return directory / "breast-cancer.parquet"


def wine(directory: Path) -> Path:
    """178 wines of three growers, with 13 chemical measures. CSV with semicolons."""
    from sklearn.datasets import load_wine

    data = load_wine()
    options = pyarrow.csv.WriteOptions(delimiter=";")
    pyarrow.csv.write_csv(_table(data, "grower", data.target_names[data.target]), directory / "wine.csv", options)
    return directory / "wine.csv"


def lines(directory: Path) -> Path:
    """Length and indentation of each line of the standard library, file by file: a time series. CSV."""
    library = Path(sysconfig.get_path("stdlib"))
    columns: dict[str, list[Any]] = {"file": [], "line": [], "characters": [], "indent": []}
    for path in sorted(library.glob("*.py")):
        for number, line in enumerate(path.read_text("utf-8", errors="replace").splitlines(), start=1):
            row = (path.name, number, len(line), len(line) - len(line.lstrip()))
            for values, value in zip(columns.values(), row, strict=True):
                values.append(value)
    pyarrow.csv.write_csv(pa.table(columns), directory / "lines.csv")
    return directory / "lines.csv"


def _table(data: Any, target: str, values: Any = None) -> pa.Table:
    """A data set of scikit-learn as a table, with the target in the last column."""
    names = [*data.feature_names, target]
    return pa.table([*map(pa.array, data.data.T), pa.array(data.target if values is None else values)], names=names)
