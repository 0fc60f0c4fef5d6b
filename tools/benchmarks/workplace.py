"""Shared by the benchmarks: settings, data and study."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tools.harness.processes import chestx, module, run_process, say


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes, by default those of the targets. Without `data`, synthetic images are drawn."""

    data: Path | None
    weights: Path | None
    work: Path
    backbone: str
    image_size: int
    drawn_images: int
    drawn_size: int
    epochs: int
    finetune_epochs: int
    batch_size: int
    amounts: str
    layers: str
    rounds: int
    startup_runs: int
    bench_rounds: int
    bench_seconds: float
    large_images: int
    variant: str
    variants: int
    growth_images: int
    seeds: int


@dataclass(frozen=True, kw_only=True)
class Workplace:
    """The settings, and files made on first use and kept in the working folder."""

    settings: Settings

    @property
    def work(self) -> Path:
        """Return the working folder."""
        return self.settings.work

    @functools.cached_property
    def data(self) -> Path:
        """Return the folder of images."""
        if self.settings.data is not None:
            return self.settings.data.resolve()
        return draw_set(self.work / "drawn", self.settings.drawn_images, self.settings.drawn_size)

    @property
    def network(self) -> list[object]:
        """Return the options of `chestx train` that name the network."""
        return ["--backbone", self.settings.backbone, "--image-size", self.settings.image_size, *self.weights]

    @property
    def weights(self) -> list[object]:
        """Return the option for the initial weights."""
        return ["--weights", "none" if self.settings.weights is None else self.settings.weights.resolve()]

    @property
    def peer(self) -> list[object]:
        """Return the settings as arguments of the notebook and of Lightning's loop."""
        settings = self.settings
        words: list[object] = ["--data", self.data, "--backbone", settings.backbone]
        words += ["--image-size", settings.image_size, "--epochs", settings.epochs]
        return words if settings.weights is None else [*words, "--weights", settings.weights.resolve()]

    def training(self, study: Path) -> list[object]:
        """Return the command for the full training of the baseline."""
        settings = self.settings
        sizes = ["--epochs", settings.epochs, "--batch-size", settings.batch_size]
        return chestx("train", self.data, "--study", study, *self.network, *sizes)

    def fresh(self, name: str) -> Path:
        """Return a path for a new study."""
        path = self.work / name
        shutil.rmtree(path, ignore_errors=True)
        return path

    @functools.cached_property
    def study(self) -> Path:
        """Return a study with a baseline: the whole study's if it was measured, else one trained for one epoch."""
        study = self.work / "study"
        if not (study / "variants" / "baseline").exists():
            say("preparing a study")
            sizes = ["--epochs", 1, "--batch-size", self.settings.batch_size]
            run_process(chestx("train", self.data, "--study", study, *self.network, *sizes))
        return study

    def copied_study(self, name: str) -> Path:
        """Return a copy of the study; files are hard links, since chestx replaces files and never writes into them."""
        copy = self.fresh(name)
        shutil.copytree(self.study, copy, copy_function=os.link)
        return copy

    def large_set(self, images: int) -> Path:
        """Return a folder of large images, made once."""
        return made_once(
            self.work / f"large-{images}",
            lambda folder: run_process(
                module("benchmarks.large_images", "--data", self.data, "--out", folder, "--images", images)
            ),
        )


def draw_set(folder: Path, images: int, size_px: int) -> Path:
    """Return a folder of synthetic radiographs, drawn once."""
    return made_once(folder, lambda target: _draw(target, images, size_px))


def _draw(target: Path, images: int, size_px: int) -> None:
    from chestx_cli.data.synthetic.sets import write_synthetic_set

    write_synthetic_set(target, images=images, seed=42, size_px=size_px)


def made_once(folder: Path, make: Callable[[Path], object]) -> Path:
    """Return a folder, built under a temporary name so that an interrupted build is repeated."""
    if not folder.exists():
        say(f"making {folder.name}")
        building = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(building, ignore_errors=True)
        make(building)
        building.rename(folder)
    return folder
