"""The notebook's training in Lightning: the same model, data, loss, optimiser and per-epoch metrics.

Prints one JSON line with the seconds.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as lightning
import torch
from torch import nn

from tools.benchmarks.reference.notebook import Config, Metrics, build_model, metrics_of, split_data


class Classifier(lightning.LightningModule):
    """The notebook's model and metrics as a Lightning module."""

    def __init__(self, model: nn.Module, class_weights: torch.Tensor, lr: float) -> None:
        super().__init__()
        self.model = model
        self.loss_fn = nn.CrossEntropyLoss(weight=class_weights)
        self.lr = lr
        self.seen: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {"train": [], "val": []}

    def training_step(self, batch: Any, _index: int) -> torch.Tensor:
        """Return the loss of one batch."""
        images, labels = batch
        logits = self.model(images)
        self.seen["train"].append((logits.detach(), labels))
        loss: torch.Tensor = self.loss_fn(logits, labels)
        return loss

    def validation_step(self, batch: Any, _index: int) -> None:
        """Collect the logits of one batch."""
        images, labels = batch
        self.seen["val"].append((self.model(images), labels))

    def on_train_epoch_end(self) -> None:
        """Compute the epoch's training metrics."""
        self._log("train")

    def on_validation_epoch_end(self) -> None:
        """Compute the epoch's validation metrics."""
        self._log("val")

    def _log(self, part: str) -> None:
        logits, labels = (torch.cat(list(values)) for values in zip(*self.seen[part], strict=True))
        found: Metrics = metrics_of(logits, labels, self.loss_fn)
        self.log_dict({f"{part}_{key}": value for key, value in found.items()})
        self.seen[part] = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam, as the notebook does."""
        return torch.optim.Adam(self.model.parameters(), lr=self.lr)


def main() -> None:
    """Train, and keep the epoch of lowest validation loss."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--backbone", default=Config.backbone)
    parser.add_argument("--image-size", type=int, default=Config.image_size)
    parser.add_argument("--epochs", type=int, default=Config.epochs)
    parser.add_argument("--batch-size", type=int, default=Config.batch_size)
    parser.add_argument("--workers", type=int, default=Config.workers)
    config = Config(**vars(parser.parse_args()))
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    started_s = time.perf_counter()
    lightning.seed_everything(config.seed, verbose=False)
    data = split_data(config)
    counts = np.bincount(data.train_labels)
    class_weights = torch.tensor(counts.sum() / (len(counts) * counts), dtype=torch.float32)
    trainer = lightning.Trainer(
        max_epochs=config.epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[lightning.callbacks.ModelCheckpoint(config.out, monitor="val_loss", save_weights_only=True)],
    )
    trainer.fit(Classifier(build_model(config, 2), class_weights, config.lr), data.train, data.val)
    print(json.dumps({"seconds": round(time.perf_counter() - started_s, 3)}))


if __name__ == "__main__":
    main()
