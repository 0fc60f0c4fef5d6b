"""The decision names reasons to doubt it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chestx_cli.evaluation.reading import read_study
from chestx_cli.evaluation.results import VariantResults
from chestx_cli.reporting.decision import decide
from support.made_up_study import write_study


@pytest.fixture(scope="module")
def variants(tmp_path_factory: pytest.TempPathFactory) -> tuple[VariantResults, ...]:
    return read_study(write_study(tmp_path_factory.mktemp("decided")), check_models=False).variants


def with_lowest(variant: VariantResults, *, sensitivity: float, specificity: float) -> VariantResults:
    """Return a variant with these lower ends of its intervals."""
    evaluation = variant.evaluation
    assert evaluation is not None
    row = replace(
        evaluation.operating_rows[0],
        sensitivity_interval=(sensitivity, 0.99),
        specificity_interval=(specificity, 0.99),
    )
    return replace(variant, evaluation=evaluation.replace(operating_rows=(row,)))


@pytest.mark.parametrize(
    ("sensitivity", "specificity", "sentences"), [(0.51, 0.51, 0), (0.49, 0.51, 1), (0.51, 0.49, 1), (0.49, 0.49, 2)]
)
def test_a_shipped_model_that_may_err_on_every_second_image_is_pointed_out(
    variants: tuple[VariantResults, ...], sensitivity: float, specificity: float, sentences: int
) -> None:
    shipped = decide(variants).ship
    assert shipped is not None
    changed = tuple(
        with_lowest(variant, sensitivity=sensitivity, specificity=specificity)
        if variant.name == shipped
        # Of those that are not shipped it does not matter.
        else with_lowest(variant, sensitivity=0.1, specificity=0.1)
        for variant in variants
    )
    assert decide(changed).sentence.count("does not rule out every second one") == sentences


def test_a_wide_margin_is_pointed_out(variants: tuple[VariantResults, ...]) -> None:
    for margin in (0.1, 0.3):
        changed = tuple(
            replace(v, evaluation=v.evaluation.replace(comparisons=(replace(v.comparison, margin=margin),)))
            if v.evaluation and v.comparison
            else v
            for v in variants
        )
        assert (f"The margin of {margin:g} is wide" in decide(changed).sentence) == (margin > 0.1)
