"""The rules for the choice of the epoch, and the measurement of what they choose."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import TINY, Chestx
from tools.benchmarks import epoch_choice
from tools.benchmarks.epoch_choice import RULES, Fit, chosen, last, lowest, one_se, trailing

EACH = np.array(list("abcdefgh"))


def test_each_rule_chooses_its_epoch() -> None:
    lows, noise = torch.tensor([0.9, 0.2, 0.5, 0.25, 0.3]), torch.linspace(-1, 1, 8).double()
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0]).double()
    losses = lows.double()[:, None] + signs[:, None] * noise * 0.1
    assert lowest(losses, EACH) == 1
    assert trailing(losses, EACH) == 3
    assert last(losses, EACH) == 4
    # The difference from the lowest loss is 0.05 with no error in the fourth epoch, and 0.1 with 0.05 in the fifth.
    assert one_se(losses, EACH) == 1
    # Now its error is 0.07.
    losses[3] += 0.3 * noise
    assert one_se(losses, EACH) == 3


def test_the_other_half_measures_what_was_chosen() -> None:
    # Half of the patients have a loss of their own in each epoch, so each choice shows which images chose it.
    losses = torch.stack([torch.arange(8.0), torch.arange(8.0).flip(0)]).double()
    fit = Fit(losses=losses, is_wrong=losses > 3, patients=EACH)
    for choice in chosen(fit, lowest, 50):
        assert choice.own_loss + choice.loss == pytest.approx(7)
        assert choice.own_loss <= choice.loss
        assert choice.error_share * 8 == pytest.approx(round(choice.error_share * 8))


def test_the_table_has_a_row_per_rule(chestx: Chestx, data: Path, tmp_path: Path) -> None:
    study = tmp_path / "study"
    assert chestx("train", data, "--study", study, *TINY, "--epochs", 1).code == 0
    docs = tmp_path / "docs"
    docs.mkdir()
    page = docs / "results.md"
    page.write_text("<!-- choice of the epoch: written by the benchmarks -->\n<!-- choice of the epoch: end -->\n")
    epoch_choice.main(["--studies", str(study), "--amount", "0.3", "--halves", "3", "--docs", str(docs)])
    lines = page.read_text().splitlines()
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines if line.startswith("| ")][1:] == list(RULES)
    # The study itself is not changed.
    assert [one.name for one in (study / "variants").iterdir()] == ["baseline"]
