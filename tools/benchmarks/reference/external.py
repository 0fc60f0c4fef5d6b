"""A script that tests a network on a folder of large images: torchvision decoding, eager FP32 ResNet50.

Prints one JSON line with the seconds, the images and the accuracy.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score, roc_auc_score
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from tools.benchmarks.reference.notebook import IMAGENET_MEAN, IMAGENET_STD, Config, build_model


class Files(Dataset[tuple[torch.Tensor, int]]):
    """Image files in class folders, decoded by torchvision."""

    def __init__(self, root: Path, image_size: int) -> None:
        classes = sorted(folder.name for folder in root.iterdir() if folder.is_dir())
        self.items = [(path, classes.index(path.parent.name)) for path in sorted(root.glob("*/*"))]
        self.transform = v2.Compose(
            [
                v2.Resize((image_size, image_size), antialias=True),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        path, label = self.items[index]
        return self.transform(decode_image(str(path), mode=ImageReadMode.RGB)), label


def main() -> None:
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--backbone", default=Config.backbone)
    parser.add_argument("--image-size", type=int, default=Config.image_size)
    parser.add_argument("--workers", type=int, default=Config.workers)
    options = parser.parse_args()
    started_s = time.perf_counter()
    config = Config(data=options.data, out=options.data, backbone=options.backbone, image_size=options.image_size)
    model = build_model(config, 2)
    model.load_state_dict(load_file(options.model))
    model.eval()
    loader = DataLoader(Files(options.data, options.image_size), batch_size=32, num_workers=options.workers)
    logits, labels = [], []
    with torch.inference_mode():
        for images, targets in loader:
            logits.append(model(images))
            labels.append(targets)
    probability, truth = torch.cat(logits).softmax(1)[:, 1].numpy(), torch.cat(labels).numpy()
    found = {
        "seconds": round(time.perf_counter() - started_s, 3),
        "images": len(truth),
        "accuracy": float(accuracy_score(truth, probability >= 0.5)),
        "auroc": float(roc_auc_score(truth, probability)),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
