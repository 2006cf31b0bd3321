"""Repairs implausible regions of images: `python -m src.repair table=ads.csv checkpoint=checkpoints/rahf out=REPAIRED`.

RAHF's implausibility map above a threshold, dilated, without the product, is generated again under the image's prompt,
several times; the most plausible candidate is kept if it is more plausible than the image was. Tables and folders:
`src/data/ads.py`; they have image and prompt, and the product cut-out with `product=true`.
`out` has <key>.png and a line of manifest.jsonl for each image: key, found (anything to repair), repaired, peak (the
largest implausibility), area (share of pixels in the mask), before and after (plausibility), values (of all
candidates). An image without detected flaws is copied. The same command resumes after a kill; failed rows are listed in
failed.csv. Exit code 0: all images are there; 1: some rows failed; 2: nothing can be repaired.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torchvision.transforms.functional import to_pil_image

from src.build import build
from src.config import plain
from src.data.ads import Ads, Folder, Row, RowError, Table
from src.diffusion.generator import Generator
from src.models.rahf.repair import Repaired, repair
from src.models.rahf.system import RAHFSystem
from src.runtime.checkpoint import fingerprint, load
from src.runtime.command import command
from src.runtime.device import PRECISIONS, autocast, torch_device
from src.runtime.files import atomic, check_names
from src.runtime.progress import progress_bar
from src.runtime.run_output import FailedRow, RunOutput

USED = ("candidates", "dilation", "seed", "precision")  # settings on which results depend, besides networks and rows


def repaired(
    generator: Generator, rahf: RAHFSystem, ads: Ads, rows: list[Row], threshold: float, config: Any
) -> Iterator[tuple[Row, Repaired | FailedRow]]:
    """Each row with its result."""
    for row in rows:
        try:
            record = ads.read(row)
            options = threshold, config.dilation, config.candidates, config.seed
            yield row, repair(generator, rahf, record, *options)
        except RowError as error:
            yield row, FailedRow(row.number, row.key, error.file, str(error))
        except ValueError as error:
            yield row, FailedRow(row.number, row.key, "", str(error))


@command("repair")
def main(config: DictConfig) -> int:
    if (config.table is None) == (config.folder is None):
        raise ValueError("give either table=FILE or folder=DIR.")
    if config.candidates < 1 or not 0 <= config.dilation < 1:
        raise ValueError(f"candidates={config.candidates} must be at least 1, dilation={config.dilation} in [0, 1).")
    device, out = torch_device(config.device), Path(config.out)
    precision = autocast(device, config.precision)
    system = load(config.checkpoint)
    if not isinstance(system, RAHFSystem):
        raise ValueError(f"{config.checkpoint} holds {type(system).__name__}, not a RAHFSystem.")
    generator = build(config.generator).eval().requires_grad_(False)
    threshold = system.thresholds["implausibility"] if config.threshold is None else config.threshold
    fields = frozenset({"prompt", "product"} if config.product else {"prompt"})
    ads = Table(Path(config.table), fields) if config.table else Folder(Path(config.folder), fields)
    rows = list(ads)
    names = {row.key: f"{row.key}.png" for row in rows if not row.problem}
    check_names(out, names)
    settings = {name: plain(config)[name] for name in USED} | {
        "rows": ads.fingerprint,
        "files": ads.contents(),
        "threshold": threshold,
        "generator": generator.settings,
        "weights": [fingerprint(generator), fingerprint(system)],
    }
    output = RunOutput(out, settings, config.resume, [ads.path], (out / name for name in names.values()))
    done = output.results(lambda result: (out / f"{result['key']}.png").is_file())
    generator.to(device, PRECISIONS[config.precision])
    system.to(device)
    waiting = [row for row in rows if row.problem or row.key not in done]
    with precision, progress_bar(len(rows), len(done)) as bar:
        for row, result in repaired(generator, system, ads, waiting, threshold, config):
            if isinstance(result, FailedRow):
                output.add([], [result])
            else:
                with atomic(out / names[row.key]) as part:
                    to_pil_image(result.image).save(part, "PNG")
                done[row.key] = told(row.key, result)
                output.add([done[row.key]], [])
            bar.update()
    found, better = (sum(row[name] for row in done.values()) for name in ("found", "repaired"))
    print(f"{found} of {len(done)} images with detected flaws, {better} repaired")
    return output.report(f"images in {out}")


def told(key: str, result: Repaired) -> dict[str, Any]:
    """The line of the manifest."""
    after = result.before if result.best is None else result.values[result.best]
    return {
        "key": key,
        "found": bool(result.values),
        "repaired": result.best is not None,
        "peak": result.peak,
        "area": float(result.mask.float().mean()),
        "before": result.before,
        "after": after,
        "values": result.values,
    }


if __name__ == "__main__":
    sys.exit(main())
