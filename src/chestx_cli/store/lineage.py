"""Ancestry of variants: whether the ancestors still exist unchanged, and are shown to have learned anything."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from chestx_cli.core.errors import IntegrityError, StudyError, UsageError
from chestx_cli.store.caveats import STALE, caveat, stamps_of
from chestx_cli.store.documents import read_record, renewal

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from chestx_cli.core.command import Run
    from chestx_cli.records.evaluation import EvaluationRecord
    from chestx_cli.records.variant import VariantRecord
    from chestx_cli.store.directory import Study

    ByName = Mapping[str, VariantRecord]
    # Returns the reasons in a variant's test results to doubt that it has learned anything.
    Findings = Callable[[VariantRecord], tuple[str, ...]]

# Begins the reason against a variant that is recorded as its own ancestor, which no command can make again.
OWN_ANCESTOR = "is recorded as made from"


def outdated(records: Iterable[VariantRecord]) -> dict[str, str]:
    """Return why variants are stale, by name; each text continues a sentence that begins with the name.

    A variant is stale if its parent is missing, has other weights than those it was made from, or is stale itself.
    """
    by_name = {record.name: record for record in records}
    reasons = {}
    for record in by_name.values():
        if descends_from_itself(record, by_name):
            parent = "itself" if record.parent == record.name else f"{record.parent}, which descends from it"
            reasons[record.name] = f"{OWN_ANCESTOR} {parent}"
            continue
        ancestor, visited = record, {record.name}
        while ancestor.parent is not None:
            broken = _broken(ancestor, by_name)
            if broken or ancestor.parent in visited:
                reasons[record.name] = (
                    broken if ancestor is record else f"was made from {record.parent}, which is stale"
                )
                break
            visited.add(ancestor.parent)
            ancestor = by_name[ancestor.parent]
    return reasons


def descends_from_itself(record: VariantRecord, by_name: ByName) -> bool:
    """Return whether a variant is recorded as its own ancestor, so that no command can make it again.

    Only edited records, and those of earlier versions of chestx, do so.
    """
    visited: set[str] = set()
    name = record.parent
    while name is not None and name in by_name and name not in visited:
        visited.add(name)
        name = by_name[name].parent
    return record.name in visited


def ends_in_circle(record: VariantRecord, by_name: ByName) -> bool:
    """Return whether a variant or one of its ancestors is recorded as its own ancestor."""
    visited: set[str] = set()
    name: str | None = record.name
    while name is not None and name in by_name and name not in visited:
        visited.add(name)
        name = by_name[name].parent
    return name in visited


def _broken(record: VariantRecord, by_name: ByName) -> str:
    """Return why a variant no longer matches its parent; empty if it was made from the parent's present weights."""
    parent = by_name.get(record.parent or "")
    if parent is None:
        return f"was made from {record.parent}, which no longer exists"
    if parent.model_sha256 != record.parent_sha256:
        return f"was made from an earlier version of {record.parent}"
    return ""


def ancestry(record: VariantRecord, by_name: ByName) -> list[VariantRecord]:
    """Return a variant, its parent, and so on, as long as each was made from the present weights of the next."""
    line = [record]
    while (parent := line[-1].parent) is not None and not _broken(line[-1], by_name):
        if by_name[parent] in line:
            break
        line.append(by_name[parent])
    return line


def with_ancestors(
    study: Study, records: Iterable[VariantRecord], known: Mapping[str, VariantRecord] | None = None
) -> dict[str, VariantRecord]:
    """Return variants and their readable ancestors, by name; `known` has records that are already read."""
    by_name = {record.name: record for record in records}
    for record in list(by_name.values()):
        parent = record.parent
        while parent is not None and parent not in by_name:
            try:
                by_name[parent] = (known or {}).get(parent) or study.read_variant(parent)
            except (StudyError, IntegrityError, UsageError):
                # Missing or unusable: its descendants are stale.
                break
            parent = by_name[parent].parent
    return by_name


def unproven_models(
    study: Study, records: Iterable[VariantRecord], *, retested: Collection[str] = ()
) -> tuple[tuple[str, str], ...]:
    """Return the models among variants and ancestors not shown to have learned anything, as pairs of model and reason.

    Judged by validation images and stored test results, except the test results of variants in `retested`, which are
    about to be replaced.
    """
    records = tuple(records)
    return unproven_of(records, with_ancestors(study, records), _stored_findings(study, retested))


def caveats_of(records: Sequence[VariantRecord], by_name: ByName, findings: Findings) -> tuple[str, ...]:
    """Return the caveats of variants, each sentence with its stamp.

    First the models not shown to have learned anything, by their records and the `findings` in test results, then the
    stale variants. `by_name` contains the variants and their ancestors.
    """
    sentences = [caveat(model, finding) for model, finding in unproven_of(records, by_name, findings)]
    sentences += _stale_caveats(by_name)
    return tuple(dict.fromkeys(sentences))


def in_fold(fold: str, sentences: Iterable[str]) -> list[str]:
    """Return caveats of a fold's variants, with the fold's name before each variant's; unchanged for an empty name."""
    if not fold:
        return list(sentences)
    return [f"{stamp}: {fold}/{rest}" for stamp, _, rest in (text.partition(": ") for text in sentences)]


def unproven_of(records: Iterable[VariantRecord], by_name: ByName, findings: Findings) -> tuple[tuple[str, str], ...]:
    """Return the same as `unproven_models`, for records and findings that are already read, as for `caveats_of`."""
    lines = [ancestry(record, by_name) for record in records]
    unproven = []
    for first in (line[-1] for line in lines):
        # A model that no longer exists is known only from the records of variants made from it.
        model = f"the earlier {first.parent} that {first.name} was made from" if first.parent else first.name
        unproven += [(model, finding) for finding in first.unproven]
    for line in lines:
        for student, teacher in pairwise(line):
            if student.is_new_network:
                unproven += [(student.name, finding) for finding in student.unproven if finding not in teacher.unproven]
    tested = {record.name: record for line in lines for record in line}
    unproven += [(record.name, finding) for record in tested.values() for finding in findings(record)]
    return tuple(dict.fromkeys(unproven))


def stored_caveats(
    study: Study, records: Sequence[VariantRecord], *, retested: Collection[str] = ()
) -> tuple[str, ...]:
    """Return the caveats of variants, as `caveats_of` does, by the records and test results of their study."""
    return caveats_of(records, with_ancestors(study, records), _stored_findings(study, retested))


def uses_models(
    run: Run, study: Study, records: Sequence[VariantRecord], *, retested: Collection[str] = ()
) -> tuple[str, ...]:
    """Add the stamps of the shown variants to a command's tables; return the caveats behind them."""
    sentences = stored_caveats(study, records, retested=retested)
    run.stamped(stamps_of(sentences))
    return sentences


def _stale_caveats(by_name: ByName) -> list[str]:
    """Return a sentence per stale variant, parents first, the order in which to make them again."""
    reasons = outdated(by_name.values())
    sentences = []
    for name in sorted(reasons, key=lambda name: _depth(name, by_name)):
        record = by_name[name]
        how = f'Make it again: run "{renewal(record.stamp.command)}"'
        if descends_from_itself(record, by_name):
            how = f"No command can make it again: remove its folder variants/{name}, and make it from another variant"
        elif record.parent not in by_name:
            how = f'Make {record.parent} again, then this variant: run "{renewal(record.stamp.command)}"'
        elif record.parent in reasons:
            how = f'Then make this variant again: run "{renewal(record.stamp.command)}"'
        sentences.append(
            f"{STALE}: {name} {reasons[name]}. Its comparison with the present models cannot show what compression "
            f"costs. {how}."
        )
    return sentences


def _depth(name: str, by_name: ByName) -> int:
    visited: list[str] = []
    while name is not None and name in by_name and name not in visited:
        visited.append(name)
        name = by_name[name].parent or ""
    return len(visited)


def _stored_findings(study: Study, retested: Collection[str]) -> Findings:
    """Return a function that reads the findings in a variant's stored test results; none for `retested` ones."""

    def findings(record: VariantRecord) -> tuple[str, ...]:
        # Here, since most commands read no test results.
        from chestx_cli.records.evaluation import EvaluationRecord

        path = study.variant(record.name) / "evaluation.test.json"
        if record.name in retested or not path.exists():
            return ()
        try:
            return findings_on_test(record, read_record(EvaluationRecord, path))
        except IntegrityError:
            # Damaged, or from another version: commands that show these results report that.
            return ()

    return findings


def findings_on_test(record: VariantRecord, evaluation: EvaluationRecord) -> tuple[str, ...]:
    """Return why test results do not show that a variant's present weights learned anything; empty if they do."""
    results = evaluation.of(record.name)
    if any(row.model_sha256 != record.model_sha256 for row in results.rows):
        return ()
    return tuple(row.finding for row in results.unproven)
