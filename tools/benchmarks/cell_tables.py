"""Tables of a study over folds and seeds, computed from the predictions and records of its cells without any model."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from chestx_cli.core.record import jsonable
from chestx_cli.evaluation.cells import auroc_gap_of, compare_cells, pair_cells, seed_pairs
from chestx_cli.evaluation.comparison import paired_rows
from chestx_cli.evaluation.endpoints import ACCURACY, ENDPOINTS
from chestx_cli.evaluation.predictions import Cell, CellPair, read_predictions, sides, stacked
from chestx_cli.evaluation.statistics.intervals import draw_patients
from chestx_cli.evaluation.verdicts import Compared, Margins, in_words, judge
from chestx_cli.records.variant import BASELINE
from chestx_cli.store.directory import Study

PRIMARY = "structured-75-static-int8"
MARGINS = Margins()
# Variants for which the variation between trainings is shown.
REPEATED = (BASELINE, "structured-75", PRIMARY, "structured-75-long-static-int8")
DRAWS_SEED = 42


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Two variants' predictions of the same images, compared as `chestx compare` does over folds."""

    found: Compared
    row: dict[str, Any]


def read_cells(work: Path, names: Sequence[str]) -> dict[str, dict[str, list[Cell]]]:
    """Return the cells by seed and variant; exits if there are none."""
    seeds = sorted(work.glob("seed-*"))
    if not seeds:
        raise SystemExit(f"{work} has no seed-* folder: make the cells first")
    return {
        seed.name.removeprefix("seed-"): {
            name: [
                Cell(
                    predictions=read_predictions(fold / "variants" / name / "predictions.test.csv"),
                    fold=fold.name,
                    seed=int(seed.name.removeprefix("seed-")),
                )
                for fold in sorted(seed.glob("fold-*"))
            ]
            for name in names
        }
        for seed in seeds
    }


def compared(first: Sequence[Cell], second: Sequence[Cell], name: str) -> Judged:
    """Return the comparison of two variants' cells, pooled over folds, with AUROC computed within folds."""
    return judged_pairs(pair_cells(first, second), name)


def judged_pairs(pairs: Sequence[CellPair], name: str) -> Judged:
    """Return the comparison of paired cells."""
    a, b = (stacked(side) for side in sides(pairs))
    patients = draw_patients(a.images.groups, np.random.default_rng(DRAWS_SEED))
    found = compare_cells(name, pairs, ACCURACY, MARGINS)
    gap = auroc_gap_of(pairs)
    (verdict,) = judge([found])
    row = {
        "variant": name,
        "images": found.endpoint.n,
        "patients": patients.n,
        "measures": jsonable(paired_rows(a, b, patients, MARGINS.endpoint, "positive")),
        "auroc": mean_auroc(sides(pairs)[1]),
        "auroc_difference": None if gap is None else gap.value,
        "auroc_difference_interval": None if gap is None else gap.interval,
        "p_margin": found.endpoint.p_margin,
        "verdict": verdict.short,
        "needed_images": verdict.needed_images,
        "sentence": in_words(found, verdict, "the first"),
        "guards": jsonable(found.guards),
    }
    return Judged(found=found, row=row)


def mean_auroc(cells: Sequence[Cell]) -> dict[str, Any]:
    """Return the AUROC averaged over folds, with its interval."""
    found = ENDPOINTS["auroc"].estimate(cells)
    return {"value": found.value, "interval": found.interval.bounds}


def judged(work: Path, names: Sequence[str]) -> dict[str, Any]:
    """Return all content of the tables as JSON types."""
    cells = read_cells(work, names)
    by_seed = {}
    for seed, variants in cells.items():
        reference = variants[BASELINE]
        found = [compared(reference, variants[name], name) for name in names if name != BASELINE]
        corrected = judge([one.found for one in found])
        by_seed[seed] = {
            "baseline_auroc": mean_auroc(reference),
            "variants": [
                {**one.row, "corrected_verdict": verdict.short} for one, verdict in zip(found, corrected, strict=True)
            ],
        }
    noise = {
        name: [
            {"seeds": seeds, **judged_pairs(pairs, name).row}
            for seeds, pairs in seed_pairs([cell for variants in cells.values() for cell in variants[name]]).items()
        ]
        for name in REPEATED
        if name in names
    }
    plain = [name for name in names if name.endswith("-plain")]
    zeros = {
        name.removesuffix("-plain"): {
            seed: compared(variants[name], variants[name.removesuffix("-plain")], name).row
            for seed, variants in cells.items()
        }
        for name in plain
    }
    first = next(iter(sorted(work.glob("seed-*/fold-*"))))
    records = {name: Study(first).read_variant(name) for name in names}
    document: dict[str, Any] = jsonable(
        {
            "plan": (work / "plan.txt").read_text(encoding="utf-8"),
            "plan_sha256": (work / "plan.sha256").read_text(encoding="utf-8").split()[0],
            "machine": json.loads((work / "machine.json").read_text(encoding="utf-8")),
            "sizes": {
                name: {
                    "bytes": record.model_bytes,
                    "parameters": record.parameters,
                    "nonzero_parameters": record.nonzero_parameters,
                    "macs": record.macs,
                }
                for name, record in records.items()
            },
            "seeds": by_seed,
            "noise": noise,
            "zeros": zeros,
        }
    )
    return document


def _mean_sd(values: Sequence[float], spec: str) -> str:
    spread = f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 and spec == "%" else ""
    if spec == "%":
        return f"{100 * statistics.fmean(values):.2f}{spread}"
    return f"{statistics.fmean(values):.4f}" + (f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else "")


def _range(interval: Sequence[float], scale: float, digits: int, sign: str = "") -> str:
    low, high = (format(scale * end, f"{sign}.{digits}f") for end in interval)
    return f"{low} to {high}" if sign else f"{low}–{high}"


def _measure(row: dict[str, Any], number: int) -> dict[str, Any]:
    measure: dict[str, Any] = row["measures"][number]
    return measure


def answer_table(document: dict[str, Any]) -> list[str]:
    """Return one line per variant: mean over seeds, spread between seeds, verdicts, size."""
    seeds = document["seeds"]
    whole = document["sizes"][BASELINE]["bytes"]
    one = next(iter(seeds.values()))["variants"]
    lines = [
        "| variant | accuracy % | sensitivity % | specificity % | AUROC | ΔAUROC | verdict by seed | MB | smaller |",
        "|---|---:|---:|---:|---:|---:|---|---:|---:|",
    ]
    rows = {BASELINE: [seed["variants"][0] for seed in seeds.values()]}
    rows |= {row["variant"]: [seed["variants"][i] for seed in seeds.values()] for i, row in enumerate(one)}
    for name, found in rows.items():
        side = "first" if name == BASELINE else "second"
        shares = [_mean_sd([_measure(row, i)[side] for row in found], "%") for i in range(3)]
        own = (
            [seed["baseline_auroc"] for seed in seeds.values()] if name == BASELINE else [row["auroc"] for row in found]
        )
        auroc = _mean_sd([one["value"] for one in own], "")
        gap = "–" if name == BASELINE else _mean_sd([row["auroc_difference"] for row in found], "")
        verdicts = "–" if name == BASELINE else _counted([row["verdict"] for row in found])
        size = document["sizes"][name]["bytes"]
        lines.append(
            f"| {name} | {' | '.join(shares)} | {auroc} | {gap} | {verdicts} | {size / 1e6:.2f} | {whole / size:.1f}× |"
        )
    return lines


def _counted(words: Sequence[str]) -> str:
    return "; ".join(f"{word} ×{words.count(word)}" for word in dict.fromkeys(words))


def seed_tables(document: dict[str, Any]) -> list[str]:
    """Return one line per variant and seed, with all intervals."""
    lines = [
        "| variant | seed | accuracy % (95 %) | sensitivity % | specificity % | AUROC (95 %) | lost / won | "
        "difference, points (95 %) | p of a loss of 2 | ΔAUROC (95 %) | verdict | after Holm | images that settle it |",
        "|---|---|---|---|---|---|---|---|---:|---|---|---|---:|",
    ]
    for seed, found in document["seeds"].items():
        lines.append(_seed_line(BASELINE, seed, found["variants"][0], "first", found["baseline_auroc"]))
    for i, row in enumerate(next(iter(document["seeds"].values()))["variants"]):
        for seed, found in document["seeds"].items():
            own = found["variants"][i]
            lines.append(_seed_line(row["variant"], seed, own, "second", own["auroc"]))
    return lines


def _seed_line(name: str, seed: str, row: dict[str, Any], side: str, auroc: dict[str, Any]) -> str:
    shares = [
        f"{100 * _measure(row, i)[side]:.1f} ({_range(_measure(row, i)[side + '_interval'], 100, 1)})" for i in range(3)
    ]
    cells = [name, seed, *shares, f"{auroc['value']:.4f} ({_range(auroc['interval'], 1, 3)})"]
    if side == "first":
        return f"| {' | '.join(cells)} | – | – | – | – | – | – | – |"
    cells += _difference_cells(row)
    settle = f"about {row['needed_images']:,}" if row["needed_images"] else "–"
    return f"| {' | '.join([*cells, row['verdict'], row['corrected_verdict'], settle])} |"


def _difference_cells(row: dict[str, Any]) -> list[str]:
    accuracy = _measure(row, 0)
    return [
        f"{accuracy['lost']} / {accuracy['won']}",
        f"{100 * accuracy['difference']:+.1f} ({_range(accuracy['difference_interval'], 100, 1, '+')})",
        f"{row['p_margin']:.3f}",
        f"{row['auroc_difference']:+.4f} ({_range(row['auroc_difference_interval'], 1, 3, '+')})",
    ]


def noise_table(document: dict[str, Any]) -> list[str]:
    """Return the comparisons of two trainings of one recipe that differ only in the seed."""
    lines = [
        "| two trainings of | seeds | only the first / second right | difference, points (95 %) | p of a loss of 2 | "
        "ΔAUROC (95 %) | verdict |",
        "|---|---|---|---|---:|---|---|",
    ]
    for name, found in document["noise"].items():
        for row in found:
            cells = [name, " and ".join(map(str, row["seeds"])), *_difference_cells(row), row["verdict"]]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def zeros_table(document: dict[str, Any]) -> list[str]:
    """Return the effect of re-estimating BatchNorm statistics on one-shot zeros."""
    lines = [
        "| zeros | seed | not re-estimated, accuracy % (95 %) | re-estimated (95 %) | lost / won by re-estimating | "
        "difference, points (95 %) | ΔAUROC (95 %) |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in document["zeros"].items():
        for seed, row in found.items():
            accuracy = _measure(row, 0)
            sides = [
                f"{100 * accuracy[side]:.1f} ({_range(accuracy[side + '_interval'], 100, 1)})"
                for side in ("first", "second")
            ]
            changed, points, _, auroc = _difference_cells(row)
            lines.append(
                f"| {name.removeprefix('oneshot-')} % | {seed} | {' | '.join(sides)} | {changed} | {points} | {auroc} |"
            )
    return lines


def tables(document: dict[str, Any]) -> str:
    """Return the Markdown for the section between the markers in docs/results.md."""
    machine = document["machine"]
    first = next(iter(document["seeds"].values()))["variants"][0]
    gpu = f"{machine['gpu']}; " if "gpu" in machine else ""
    parts = [
        f"{first['images']} images of {first['patients']} patients, each predicted once per seed by a model that has "
        f"not seen its patient. Machine: {gpu}{machine['processor']}, {machine['threads']} processors "
        f"({machine['instructions']}), {machine['memory']}; Python {machine['python']}, torch {machine['torch']}, "
        f"torchvision {machine['torchvision']}, onnxruntime {machine['onnxruntime']}.",
        f"The plan, written before the first test image was predicted, sha256 `{document['plan_sha256'][:16]}…`:",
        "```\n" + document["plan"].rstrip() + "\n```",
        "Means over seeds ± standard deviation between seeds:",
        "\n".join(answer_table(document)),
        "Two trainings of one recipe, the seed alone changed:",
        "\n".join(noise_table(document)),
        "BatchNorm statistics of one-shot zeros, re-estimated against not:",
        "\n".join(zeros_table(document)),
        "Every variant by seed; lost and won are images that only the baseline, and only the variant, gets right:",
        "\n".join(seed_tables(document)),
    ]
    return "\n\n".join(parts)
