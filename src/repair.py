"""Repairs implausible regions of images: `python -m src.repair table=ads.csv checkpoint=checkpoints/rahf out=REPAIRED`.

RAHF's implausibility map above a threshold, dilated, without the product, is generated again under the image's prompt,
several times; the most plausible candidate is kept if it is more plausible than the image was. Tables and folders:
`src/data/ads.py`; they have image and prompt, and the product cut-out with `product=true`.
`out` has <key>.png and a line of manifest.jsonl for each image: key, found (anything to repair), repaired, peak (the
largest implausibility), area (share of pixels in the mask), before and after (plausibility), values (of all
candidates). An image without detected flaws is copied. images.csv lists the images with their products, prompts and
titles, as a table for `src.score`; depth, saliency and scores of the original are left out, as they may no longer be
true.
The same command resumes after a kill; failed rows are listed in failed.csv.
Exit code 0: all images are there; 1: some rows failed; 2: nothing can be repaired.
"""

import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torchvision.transforms.functional import to_pil_image

from src.build import build
from src.data.ads import Ads, Folder, Row, RowError, Table, without_suffix
from src.data.tables import write_table
from src.diffusion.generator import Generator
from src.models.rahf.repair import Repaired, RepairSettings, repair
from src.models.rahf.system import RAHFSystem
from src.runtime.checkpoint import fingerprint, load
from src.runtime.command import command
from src.runtime.device import PRECISIONS, autocast, torch_device
from src.runtime.files import atomic, check_names, check_outside
from src.runtime.progress import progress_bar
from src.runtime.run_output import FailedRow, RunOutput

KEPT = ("product", "prompt", "title")  # fields that are true of the repaired image as well
TABLE = "images.csv"


def repaired(
    generator: Generator, rahf: RAHFSystem, ads: Ads, rows: list[Row], settings: RepairSettings
) -> Iterator[tuple[Row, Repaired | FailedRow]]:
    """Each row with its result."""
    for row in rows:
        try:
            yield row, repair(generator, rahf, ads.read(row), settings)
        except RowError as error:
            yield row, FailedRow(row.number, row.key, error.file, str(error))
        except ValueError as error:
            yield row, FailedRow(row.number, row.key, "", str(error))


@command("repair", "out", "checkpoint")
def main(config: DictConfig) -> int:
    if (config.table is None) == (config.folder is None):
        raise ValueError("give either table=FILE or folder=DIR.")
    if config.folder:
        check_outside("out", config.out, config.folder)
    device, out = torch_device(config.device), Path(config.out)
    precision = autocast(device, config.precision)
    system = load(config.checkpoint, RAHFSystem)
    threshold = system.thresholds["implausibility"] if config.threshold is None else config.threshold
    how = RepairSettings(threshold, config.dilation, config.candidates, config.seed)
    generator = build(config.generator).eval().requires_grad_(False)
    fields = frozenset({"prompt", "product"} if config.product else {"prompt"})
    ads = Table(Path(config.table), fields) if config.table else Folder(Path(config.folder), fields)
    rows = list(ads)
    names = {row.key: f"{without_suffix(row.key)}.png" for row in rows if not row.problem}
    check_names(out, names)
    settings = asdict(how) | {
        "precision": config.precision,
        "rows": ads.fingerprint,
        "files": ads.contents(),
        "generator weights": fingerprint(generator),
        "weights": fingerprint(system),
    }
    settings |= {f"generator.{name}": value for name, value in generator.sampling.items()}
    output = RunOutput(out, settings, config.resume, [ads.path], (out / name for name in [TABLE, *names.values()]))
    done = output.results(lambda result: (out / names.get(result["key"], "")).is_file())
    generator.to(device, PRECISIONS[config.precision])
    system.to(device)
    waiting = [row for row in rows if row.problem or row.key not in done]
    with precision, progress_bar(len(rows), len(done)) as bar:
        for row, result in repaired(generator, system, ads, waiting, how):
            if isinstance(result, FailedRow):
                output.add([], [result])
            else:
                with atomic(out / names[row.key]) as part:
                    to_pil_image(result.image).save(part, "PNG")
                done[row.key] = told(row.key, result)
                output.add([done[row.key]], [])
            bar.update()
    made = [row for row in rows if row.key in done and not row.problem]
    listed = [{"key": row.key, "image": names[row.key]} | ads.cells(row, KEPT, out) for row in made]
    write_table(out / TABLE, listed, ("key", "image"))
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
