"""The commented study file that `chestx study --init` writes: the default study."""

from __future__ import annotations

STUDY_FILE = """\
# A study over folds and seeds: run it by "chestx study study.toml".
# Keys below a command's name are that command's options, written as on the command line without the dashes.

data = "data"          # folder of class folders, or a manifest; relative to this file
folds = 5              # each image is tested in one of them, by models that have not seen its patient
seeds = [42]           # of training, fine-tuning and calibration; three or more show the noise between trainings
endpoint = "accuracy"  # what the verdict is on: chestx study --help lists the choices
margin = 0.02          # the largest loss that counts as not inferior

[split]                # options of chestx split
ratios = [70, 15, 15]  # the second is the validation share; the test share is one fold

[train]                # options of chestx train: the baseline
backbone = "resnet50"
weights = "imagenet"   # or "none", or a file
epochs = 12
lr = 1e-4
batch-size = 32

[evaluate]             # options of chestx evaluate
# operating-point = "youden"

[benchmark]            # options of chestx benchmark, run once, on the first cell
rounds = 5

# Variants: each is a chain of steps from the baseline. A step is a method of chestx prune or chestx quantize, or
# another network that learns from the one before, as { distill = "resnet18", epochs = 24 }.
[[variants]]
name = "oneshot-50"
steps = [{ prune = "oneshot", amount = 0.5 }]

[[variants]]
name = "iterative-3x20"
steps = [{ prune = "iterative", steps = 3, amount = 0.2 }]

[[variants]]
name = "structured-75-static-int8"
steps = [
    { prune = "structured", amount = 0.75 },
    { quantize = "static" },
]

[[variants]]
name = "dynamic-int8"
steps = [{ quantize = "dynamic" }]
"""
