"""The smallest demonstration that runs every command."""

from __future__ import annotations

from chestx_cli.commands import demo
from conftest import IMAGE_SIZE_PX

SMALL = demo.Extent(
    images=60,
    ratios=(40.0, 10.0, 50.0),
    backbone="tiny",
    image_size_px=IMAGE_SIZE_PX,
    epochs=1,
    pruning_steps=1,
    macs_removed=0.3,
    finetune_epochs=1,
    rounds=1,
    round_s=0.02,
)
