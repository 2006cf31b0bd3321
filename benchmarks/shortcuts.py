"""Do simple statistics reveal the class? `python -m benchmarks.shortcuts [NUM]` writes results/shortcuts.json.

Fits a logistic regression on mean color, contrast, edge density, size and place of the product, file order and similar
statistics of the showroom's training split, and prints its macro-F1 on the test split. A second result adds mean and
standard deviation of depth and saliency, which are informative by design: a hallucinated shape is salient outside of
the product mask.
"""

import json
import sys
from datetime import date
from pathlib import Path

import cv2
import numpy as np
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from src.data.batch import Record
from src.data.showroom.world import Showroom, ShowroomSplit
from src.runtime.device import machine, torch_device

RESULTS = Path(__file__).parent / "results" / "shortcuts.json"


def statistics(record: Record, index: int, maps: bool) -> list[float]:
    """Statistics of an image that should not reveal its class; with `maps` also of depth and saliency."""
    image = record["image"].transpose(1, 2, 0)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    edges = cv2.Canny(grey, 100, 200)
    alpha = record["product"][3] > 128
    rows, columns = np.nonzero(alpha)
    values = [*image.mean((0, 1)), *image.std((0, 1)), edges.mean(), cv2.Laplacian(grey, cv2.CV_64F).var()]
    values += [alpha.mean(), rows.mean(), columns.mean(), np.ptp(rows), np.ptp(columns)]
    if maps:
        values += [f(record[name]) for name in ("depth", "saliency") for f in (np.mean, np.std)]
    return [float(v) for v in (*values, len(record["title"]), len(record["prompt"]), index % 9, index)]


def table(split: ShowroomSplit, maps: bool) -> tuple[np.ndarray, np.ndarray]:
    """Statistics and labels of a split."""
    rows, labels = [], []
    for index in range(len(split)):
        record = split[index]
        rows.append(statistics(record, index, maps))
        labels.append(record["label"])
    return np.array(rows), np.array(labels)


def macro_f1(num: int, maps: bool = False, cache: str | None = None, seed: int = 0) -> tuple[float, float]:
    """Macro-F1 of the regression and of random guesses by class frequency, on the test split."""
    world = Showroom({"train": num, "test": num // 2}, seed=seed, cache=cache)
    train, test = table(world.split("train"), maps), table(world.split("test"), maps)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=3000, class_weight="balanced")).fit(*train)
    guess = DummyClassifier(strategy="stratified", random_state=0).fit(*train)
    return tuple(float(f1_score(test[1], m.predict(test[0]), average="macro")) for m in (model, guess))  # type: ignore[return-value]


def main() -> None:
    cv2.setNumThreads(1)
    size, results = int(sys.argv[1]) if len(sys.argv) > 1 else 2000, {}
    for maps in (False, True):
        found, chance = macro_f1(size, maps, cache=".cache/showroom")
        what = "image and file" if not maps else "image, file, depth and saliency"
        print(f"logistic regression on statistics of {what}: macro-F1 {found:.3f} (guessing: {chance:.3f})")
        results |= {f"macro-F1, statistics of {what}": found, "macro-F1, guessing": chance}
    about = {"machine": machine(torch_device("cpu")), "date": date.today().isoformat()}
    RESULTS.write_text(json.dumps(about | {"images": size} | results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
