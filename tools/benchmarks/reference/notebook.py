"""The study as a typical, well-written notebook, with torchvision, scikit-learn and matplotlib and without chestx.

One function per section; `python -m tools.benchmarks.reference.notebook --data DIR --out DIR` runs them in order and
prints one JSON line per section with its duration in seconds.
"""

from __future__ import annotations

import argparse
import copy
import csv
import fnmatch
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Imports are a notebook's first cell, so they are timed.
# ruff: noqa: E402
_STARTED_S = time.perf_counter()

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
import torch
import torchvision
from safetensors.torch import load_file, save_file
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    classification_report,
    confusion_matrix,
    f1_score,
    precision_score,
    recall_score,
    roc_auc_score,
    roc_curve,
)
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn.utils import prune
from torch.utils.data import DataLoader, Subset, WeightedRandomSampler
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

IMPORTS_S = time.perf_counter() - _STARTED_S

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TEST_SHARE = VAL_SHARE = 0.15
STEPS = (
    "split",
    "train",
    "sensitivity",
    "prune_oneshot",
    "prune_iterative",
    "quantize",
    "evaluate",
    "benchmark",
    "report",
)

Metrics = dict[str, float]
Loader = DataLoader[Any]


@dataclass(frozen=True, kw_only=True)
class Config:
    """The settings cell."""

    data: Path
    out: Path
    weights: Path | None = None
    backbone: str = "resnet50"
    image_size: int = 224
    epochs: int = 12
    finetune_epochs: int = 2
    prune_steps: int = 3
    amounts: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8)
    layers: tuple[str, ...] = ()
    batch_size: int = 32
    lr: float = 1e-4
    workers: int = 2
    bench_rounds: int = 5
    bench_seconds: float = 1.0
    seed: int = 42


def train_transform(image_size: int) -> v2.Compose:
    """Return the augmentation: flip, rotation by up to 10°, brightness and contrast by up to 20 %."""
    return v2.Compose(
        [
            v2.Resize((image_size, image_size)),
            v2.RandomHorizontalFlip(),
            v2.RandomRotation(10),
            v2.ColorJitter(brightness=0.2, contrast=0.2),
            *_to_input(),
        ]
    )


def eval_transform(image_size: int) -> v2.Compose:
    """Return the preprocessing without augmentation."""
    return v2.Compose([v2.Resize((image_size, image_size)), *_to_input()])


def _to_input() -> list[nn.Module]:
    return [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)]


@dataclass(frozen=True, kw_only=True)
class Data:
    """The loaders of the three parts, and the training labels."""

    classes: list[str]
    train: Loader
    val: Loader
    test: Loader
    train_labels: npt.NDArray[np.int64]


def split_data(config: Config) -> Data:
    """List the images and divide them 70/15/15, stratified and seeded."""
    augmented = ImageFolder(str(config.data), train_transform(config.image_size))
    plain = ImageFolder(str(config.data), eval_transform(config.image_size))
    labels = np.array(plain.targets)
    rows = np.arange(len(labels))
    rest, test = train_test_split(rows, test_size=TEST_SHARE, stratify=labels, random_state=config.seed)
    val_share = VAL_SHARE / (1 - TEST_SHARE)
    train, val = train_test_split(rest, test_size=val_share, stratify=labels[rest], random_state=config.seed)
    counts = np.bincount(labels[train])
    generator = torch.Generator().manual_seed(config.seed)
    sampler = WeightedRandomSampler(
        (1.0 / counts[labels[train]]).tolist(), num_samples=len(train), replacement=True, generator=generator
    )
    return Data(
        classes=plain.classes,
        train=make_loader(Subset(augmented, train.tolist()), config, sampler=sampler),
        val=make_loader(Subset(plain, val.tolist()), config),
        test=make_loader(Subset(plain, test.tolist()), config),
        train_labels=labels[train],
    )


def make_loader(dataset: Any, config: Config, sampler: Any = None) -> Loader:
    """Return a loader with persistent worker processes."""
    return DataLoader(
        dataset,
        batch_size=config.batch_size,
        sampler=sampler,
        num_workers=config.workers,
        persistent_workers=config.workers > 0,
    )


def build_model(config: Config, n_classes: int) -> nn.Module:
    """Return the pretrained ResNet with a new classifier."""
    model: nn.Module = torchvision.models.get_model(config.backbone, weights=None)
    if config.weights is not None:
        state = {k: v.float() for k, v in load_file(config.weights).items() if not k.startswith("fc.")}
        model.load_state_dict(state, strict=False)
    features = int(model.fc.in_features)  # type: ignore[union-attr, arg-type]  # any attribute of a Module
    model.fc = nn.Sequential(
        nn.Linear(features, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Dropout(0.5), nn.Linear(512, n_classes)
    )
    return model


@torch.inference_mode()
def predict(model: nn.Module, loader: Loader) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits [N, C] and labels [N] of a whole loader."""
    model.eval()
    logits, labels = [], []
    for images, targets in loader:
        logits.append(model(images))
        labels.append(targets)
    return torch.cat(logits), torch.cat(labels)


def metrics_of(logits: torch.Tensor, labels: torch.Tensor, loss_fn: nn.Module) -> Metrics:
    """Return the loss and scikit-learn's metrics of a two-class classifier."""
    probability = logits.softmax(1)[:, 1].numpy()
    predicted, truth = logits.argmax(1).numpy(), labels.numpy()
    return {
        "loss": float(loss_fn(logits, labels)),
        "accuracy": float(accuracy_score(truth, predicted)),
        "precision": float(precision_score(truth, predicted, average="macro", zero_division=0)),
        "recall": float(recall_score(truth, predicted, average="macro", zero_division=0)),
        "f1": float(f1_score(truth, predicted, average="macro")),
        "auroc": float(roc_auc_score(truth, probability)),
        "average_precision": float(average_precision_score(truth, probability)),
    }


def fit(model: nn.Module, data: Data, config: Config, epochs: int) -> list[dict[str, float]]:
    """Train with Adam and class-weighted cross-entropy; restore the weights of lowest validation loss."""
    counts = np.bincount(data.train_labels)
    class_weights = torch.tensor(counts.sum() / (len(counts) * counts), dtype=torch.float32)
    loss_fn = nn.CrossEntropyLoss(weight=class_weights)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr)
    history = []
    best_loss, best_state = float("inf"), None
    for epoch in range(1, epochs + 1):
        model.train()
        seen_logits, seen_labels = [], []
        for images, labels in data.train:
            optimizer.zero_grad()
            logits = model(images)
            loss = loss_fn(logits, labels)
            loss.backward()
            optimizer.step()
            seen_logits.append(logits.detach())
            seen_labels.append(labels)
        train = metrics_of(torch.cat(seen_logits), torch.cat(seen_labels), loss_fn)
        val = metrics_of(*predict(model, data.val), loss_fn)
        history.append(
            {"epoch": epoch, **{f"train_{k}": v for k, v in train.items()}, **{f"val_{k}": v for k, v in val.items()}}
        )
        if val["loss"] < best_loss:
            best_loss, best_state = val["loss"], copy.deepcopy(model.state_dict())
    if best_state is not None:
        model.load_state_dict(best_state)
    return history


def train_baseline(data: Data, config: Config) -> tuple[nn.Module, list[dict[str, float]]]:
    """Train the baseline and save it."""
    torch.manual_seed(config.seed)
    model = build_model(config, len(data.classes))
    history = fit(model, data, config, config.epochs)
    save_file(model.state_dict(), config.out / "baseline.safetensors")
    return model, history


def layers_of(model: nn.Module, patterns: Sequence[str] = ()) -> dict[str, nn.Module]:
    """Return the Conv2d and Linear layers, or only those whose names match the patterns."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
        and (not patterns or any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns))
    }


def measure_layer(model: nn.Module, name: str, amount: float, loader: Loader) -> Metrics:
    """Return the quality with one layer pruned by L1 magnitude, on a copy of the model."""
    pruned = copy.deepcopy(model)
    layer = pruned.get_submodule(name)
    prune.l1_unstructured(layer, "weight", amount)
    prune.remove(layer, "weight")
    logits, labels = predict(pruned, loader)
    return metrics_of(logits, labels, nn.CrossEntropyLoss())


def sensitivity(model: nn.Module, data: Data, config: Config) -> list[dict[str, Any]]:
    """Prune each layer alone by each amount and evaluate on the validation images."""
    baseline = metrics_of(*predict(model, data.val), nn.CrossEntropyLoss())
    rows: list[dict[str, Any]] = []
    for name in layers_of(model, config.layers):
        for amount in config.amounts:
            found = measure_layer(model, name, amount, data.val)
            increase = found["loss"] - baseline["loss"]
            rows.append({"layer": name, "amount": amount, **found, "loss_increase": increase})
    write_csv(config.out / "sensitivity.csv", rows)
    return rows


def prune_oneshot(model: nn.Module, config: Config) -> nn.Module:
    """Remove half of all Conv2d and Linear weights, the smallest, without fine-tuning."""
    pruned = copy.deepcopy(model)
    parameters = [(layer, "weight") for layer in layers_of(pruned).values()]
    prune.global_unstructured(parameters, prune.L1Unstructured, amount=0.5)
    return finish_pruning(pruned, parameters, config.out / "oneshot.safetensors")


def prune_iterative(model: nn.Module, data: Data, config: Config) -> nn.Module:
    """Remove 20 % of what is left, fine-tune, and again."""
    pruned = copy.deepcopy(model)
    parameters = [(layer, "weight") for layer in layers_of(pruned).values()]
    for _ in range(config.prune_steps):
        prune.global_unstructured(parameters, prune.L1Unstructured, amount=0.2)
        fit(pruned, data, config, config.finetune_epochs)
    return finish_pruning(pruned, parameters, config.out / "iterative.safetensors")


def finish_pruning(model: nn.Module, parameters: list[tuple[nn.Module, str]], path: Path) -> nn.Module:
    """Make the zeros permanent and save the model."""
    for layer, name in parameters:
        prune.remove(layer, name)
    save_file(model.state_dict(), path)
    return model


def quantize(model: nn.Module, config: Config) -> nn.Module:
    """Quantize the Linear layers dynamically and save the model."""
    with warnings.catch_warnings():
        # torch recommends torchao instead of this classic recipe.
        warnings.simplefilter("ignore")
        quantized: nn.Module = torch.ao.quantization.quantize_dynamic(
            copy.deepcopy(model).eval(), {nn.Linear}, dtype=torch.qint8
        )
        torch.save(quantized.state_dict(), config.out / "dynamic-int8.pth")
    return quantized


def evaluate(models: dict[str, nn.Module], data: Data, config: Config) -> dict[str, Any]:
    """Return each model's test metrics, confusion matrix and ROC curve."""
    results: dict[str, Any] = {}
    for name, model in models.items():
        logits, labels = predict(model, data.test)
        truth, predicted = labels.numpy(), logits.argmax(1).numpy()
        false_positive_rate, true_positive_rate, _ = roc_curve(truth, logits.softmax(1)[:, 1].numpy())
        results[name] = {
            "metrics": metrics_of(logits, labels, nn.CrossEntropyLoss()),
            "report": classification_report(truth, predicted, target_names=data.classes, zero_division=0),
            "confusion": confusion_matrix(truth, predicted, labels=[0, 1]),
            "roc": (false_positive_rate, true_positive_rate),
        }
    write_csv(config.out / "test.csv", [{"model": name, **found["metrics"]} for name, found in results.items()])
    return results


@torch.inference_mode()
def benchmark(models: dict[str, nn.Module], config: Config) -> dict[str, dict[str, float]]:
    """Return each model's latency (batch 1) and throughput (batch 16), timed as long as chestx does."""
    size = (3, config.image_size, config.image_size)
    one, many = torch.randn(1, *size), torch.randn(16, *size)
    calls: dict[tuple[str, int], list[float]] = {(name, len(x)): [] for name in models for x in (one, many)}
    for name, model in models.items():
        model.eval()
        for x in (one, many):
            for _ in range(5):
                model(x)
        for x in (one, many):
            deadline = time.perf_counter() + config.bench_rounds * config.bench_seconds
            while len(calls[name, len(x)]) < 3 or time.perf_counter() < deadline:
                started = time.perf_counter()
                model(x)
                calls[name, len(x)].append(time.perf_counter() - started)
    rows = {
        name: {
            "latency_ms": 1000 * float(np.median(calls[name, 1])),
            "images_per_s": 16 / float(np.median(calls[name, 16])),
        }
        for name in models
    }
    write_csv(config.out / "benchmark.csv", [{"model": name, **row} for name, row in rows.items()])
    return rows


def report(results: dict[str, Any], config: Config) -> None:
    """Draw the figures: data, training curves, sensitivity, confusion matrices, ROC, comparison."""
    data: Data = results["split"]
    plt.bar(data.classes, np.bincount(data.train_labels))
    save_figure(config, "classes", "Training images per class")
    history = results["train"][1]
    for key in ("train_loss", "val_loss"):
        plt.plot([row["epoch"] for row in history], [row[key] for row in history], label=key)
    plt.legend()
    save_figure(config, "training", "Loss per epoch")
    if "sensitivity" in results:
        rows = results["sensitivity"]
        plt.figure(figsize=(8, 12))
        for amount in config.amounts:
            chosen = [row for row in rows if row["amount"] == amount]
            plt.plot([row["loss_increase"] for row in chosen], [row["layer"] for row in chosen], ".", label=f"{amount}")
        plt.legend()
        save_figure(config, "sensitivity", "Loss increase per pruned layer")
    tested = results["evaluate"]
    _, axes = plt.subplots(1, len(tested), figsize=(4 * len(tested), 4), squeeze=False)
    for axis, (name, found) in zip(axes[0], tested.items(), strict=True):
        axis.imshow(found["confusion"], cmap="Blues")
        axis.set_title(name)
        for (i, j), count in np.ndenumerate(found["confusion"]):
            axis.text(j, i, str(count), ha="center")
    save_figure(config, "confusion", "Confusion matrices")
    for name, found in tested.items():
        plt.plot(*found["roc"], label=name)
    plt.legend()
    save_figure(config, "roc", "ROC")
    latency = results["benchmark"]
    _, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    left.bar(list(tested), [found["metrics"]["accuracy"] for found in tested.values()])
    right.bar(list(latency), [row["latency_ms"] for row in latency.values()])
    save_figure(config, "comparison", "Accuracy and latency")


def save_figure(config: Config, name: str, title: str) -> None:
    """Write the current figure and close it."""
    plt.suptitle(title)
    plt.savefig(config.out / f"{name}.png", dpi=150, bbox_inches="tight")
    plt.close("all")


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows with the same keys as CSV."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def run(config: Config, steps: Sequence[str]) -> dict[str, Any]:
    """Run the sections in order, each with the results of earlier ones; return the results of all."""
    config.out.mkdir(parents=True, exist_ok=True)
    done: dict[str, Any] = {}

    def models() -> dict[str, nn.Module]:
        made = {"baseline": done["train"][0]}
        return made | {name: done[name] for name in ("prune_oneshot", "prune_iterative", "quantize") if name in done}

    sections: dict[str, Callable[[], Any]] = {
        "split": lambda: split_data(config),
        "train": lambda: train_baseline(done["split"], config),
        "sensitivity": lambda: sensitivity(done["train"][0], done["split"], config),
        "prune_oneshot": lambda: prune_oneshot(done["train"][0], config),
        "prune_iterative": lambda: prune_iterative(done["train"][0], done["split"], config),
        "quantize": lambda: quantize(done["train"][0], config),
        "evaluate": lambda: evaluate(models(), done["split"], config),
        "benchmark": lambda: benchmark(models(), config),
        "report": lambda: report(done, config),
    }
    for step in steps:
        with timed(step):
            done[step] = sections[step]()
    return done


@contextmanager
def timed(step: str) -> Iterator[None]:
    """Print the section's JSON line when the section ends."""
    started = time.perf_counter()
    yield
    say(step, time.perf_counter() - started)


def say(step: str, seconds: float) -> None:
    """Print one JSON line."""
    print(json.dumps({"step": step, "seconds": round(seconds, 3)}), flush=True)


def main(words: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the notebook with settings from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--backbone", default=Config.backbone)
    parser.add_argument("--image-size", type=int, default=Config.image_size)
    parser.add_argument("--epochs", type=int, default=Config.epochs)
    parser.add_argument("--finetune-epochs", type=int, default=Config.finetune_epochs)
    parser.add_argument("--prune-steps", type=int, default=Config.prune_steps)
    parser.add_argument("--amounts", default=",".join(map(str, Config.amounts)))
    parser.add_argument("--layers", default="")
    parser.add_argument("--batch-size", type=int, default=Config.batch_size)
    parser.add_argument("--workers", type=int, default=Config.workers)
    parser.add_argument("--bench-rounds", type=int, default=Config.bench_rounds)
    parser.add_argument("--bench-seconds", type=float, default=Config.bench_seconds)
    parser.add_argument("--steps", default=",".join(STEPS))
    given = vars(parser.parse_args(words))
    steps = given.pop("steps").split(",")
    given["amounts"] = tuple(float(amount) for amount in given["amounts"].split(","))
    given["layers"] = tuple(pattern for pattern in given["layers"].split(",") if pattern)
    say("imports", IMPORTS_S)
    return run(Config(**given), steps)


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
