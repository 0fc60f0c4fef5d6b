"""Speed of `chestx predict`: one image from start to result, and a folder compared with `evaluate --data`.

    python -m tools.benchmarks.prediction STUDY FOLDER --variant static-int8

FOLDER has class folders, since `evaluate` needs them (`tools.benchmarks.large_images` makes large ones). The study is
copied. The two commands alternate. Rates are computed from the difference between the whole folder and a small part of
it, so that the start of a process does not count. CPU seconds depend less on other load of the machine.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tools.harness.machine import describe
from tools.harness.processes import Ended, in_turn, run_process, say, spread_of

SMALL_IMAGES = 64


@dataclass(frozen=True, kw_only=True)
class Sides:
    """A small part of a folder and the whole, to be predicted by both commands."""

    study: Path
    variant: str
    folders: tuple[Path, Path]
    work: Path

    def evaluated(self, round_: int) -> tuple[Ended, Ended]:
        """Run `evaluate --data` on the small part and on the whole."""
        words = [
            *_chestx("evaluate"),
            self.variant,
            "--study",
            self.study,
            "--baseline",
            self.variant,
            "--name",
            "other",
        ]
        say(f"round {round_ + 1}: evaluate --data")
        return _both([*words, "--allow-leakage", "--data", folder] for folder in self.folders)

    def predicted(self, round_: int) -> tuple[Ended, Ended]:
        """Run `predict --csv` on the small part and on the whole."""
        words = [*_chestx("predict"), "--study", self.study, "--variant", self.variant, "--force"]
        say(f"round {round_ + 1}: predict --csv")
        return _both([*words, "--csv", self.work / f"{folder.name}.csv", folder] for folder in self.folders)


def _both(lines: Iterable[list[object]]) -> tuple[Ended, Ended]:
    small, whole = (run_process(line) for line in lines)
    return small, whole


def main() -> None:
    """Measure and print the tables."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("study", type=Path)
    options.add_argument("folder", type=Path)
    options.add_argument("--variant", required=True)
    options.add_argument("--rounds", type=int, default=3)
    arguments = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="chestx-predict-", dir=Path.cwd()) as temporary:
        work = Path(temporary)
        shutil.copytree(arguments.study, work / "study")
        files = sorted(path for path in arguments.folder.rglob("*") if path.is_file())
        images = len(files)
        per_class = SMALL_IMAGES // 2
        for label in sorted({path.parent.name for path in files}):
            (work / "part" / label).mkdir(parents=True)
            for path in [path for path in files if path.parent.name == label][:per_class]:
                os.link(path, work / "part" / label / path.name)
        sides = Sides(
            study=work / "study",
            variant=arguments.variant,
            folders=(work / "part", arguments.folder.resolve()),
            work=work,
        )
        _print_one_image(sides, files[0], arguments.rounds)
        evaluated, predicted = in_turn(arguments.rounds, sides.evaluated, sides.predicted)
    _print_folder(evaluated, predicted, images)
    machine = describe()
    print(f"\nMachine: {machine['processor']}, {machine['threads']} processors ({machine['instructions']}).")
    print(f"Measured with `{shlex.join(['python', '-m', 'tools.benchmarks.prediction', *sys.argv[1:]])}`.")


def _print_one_image(sides: Sides, image: Path, rounds: int) -> None:
    words = [*_chestx("predict"), "--study", sides.study, image]
    lines = {"named with --variant": [*words, "--variant", sides.variant], "the variant to ship": words}
    print("| one image, start to result | wall s, median (range) | CPU s, median |")
    print("|---|---:|---:|")
    for what, line in lines.items():
        run_process(line)
        ended = [run_process(line) for _ in range(2 * rounds + 1)]
        wall, cpu = spread_of([one.seconds for one in ended]), spread_of([one.cpu_s for one in ended])
        print(f"| {what} | {wall.median:.2f} ({wall.low:.2f}–{wall.high:.2f}) | {cpu.median:.2f} |", flush=True)


def _print_folder(evaluated: list[tuple[Ended, Ended]], predicted: list[tuple[Ended, Ended]], images: int) -> None:
    print(
        f"\n| {images:,} images | images/s, median (range) | CPU ms per image | peak MiB | of {SMALL_IMAGES} images |"
    )
    print("|---|---:|---:|---:|---:|")
    more = images - SMALL_IMAGES
    for side, rounds in (("evaluate --data", evaluated), ("predict --csv", predicted)):
        rate = spread_of([more / (whole.seconds - small.seconds) for small, whole in rounds])
        cpu = spread_of([1000 * (whole.cpu_s - small.cpu_s) / more for small, whole in rounds])
        peaks = [spread_of([one[at].peak_bytes / 2**20 for one in rounds]).median for at in (1, 0)]
        rates = f"{rate.median:.1f} ({rate.low:.1f}–{rate.high:.1f})"
        print(f"| `{side}` | {rates} | {cpu.median:.1f} | {peaks[0]:.0f} | {peaks[1]:.0f} |")
    ratio = spread_of(
        [
            (whole.seconds - small.seconds) / (new_whole.seconds - new_small.seconds)
            for (small, whole), (new_small, new_whole) in zip(evaluated, predicted, strict=True)
        ]
    )
    print(f"\nRate of predict over that of evaluate: {ratio.median:.2f} ({ratio.low:.2f}–{ratio.high:.2f}).")


def _chestx(command: str) -> list[object]:
    return [sys.executable, "-m", "chestx_cli", command]


if __name__ == "__main__":
    main()
