"""What a variant descends from: whether that is still there, and whether it is shown to have learned anything."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from chestx_cli.core.errors import IntegrityError, StudyError, UsageError, command_line
from chestx_cli.records.evaluation import EvaluationRecord
from chestx_cli.store.caveats import STALE, caveat, stamps_of
from chestx_cli.store.documents import read_record

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from chestx_cli.core.command import Run
    from chestx_cli.records.variant import VariantRecord
    from chestx_cli.store.directory import Study

    ByName = Mapping[str, VariantRecord]
    # Reasons, by a variant's test results, to doubt that it has learned anything.
    Findings = Callable[[VariantRecord], tuple[str, ...]]


def outdated(records: Iterable[VariantRecord]) -> dict[str, str]:
    """Return why variants are stale, by name; the text continues a sentence that begins with the name.

    A variant is stale where its parent is gone, has other weights than those it was made from, or is stale itself.
    """
    by_name = {record.name: record for record in records}
    reasons = {}
    for record in by_name.values():
        above, passed = record, {record.name}
        while above.parent is not None:
            broken = _broken(above, by_name)
            # Only edited records go in a circle.
            if above.parent == record.name:
                reasons[record.name] = f"is recorded as made from {record.parent}, which descends from it"
                break
            if broken or above.parent in passed:
                reasons[record.name] = broken if above is record else f"was made from {record.parent}, which is stale"
                break
            passed.add(above.parent)
            above = by_name[above.parent]
    return reasons


def _broken(record: VariantRecord, by_name: ByName) -> str:
    """Return what is wrong between a variant and its parent; empty where it was made from the present one."""
    parent = by_name.get(record.parent or "")
    if parent is None:
        return f"was made from {record.parent}, which no longer exists"
    if parent.model_sha256 != record.parent_sha256:
        return f"was made from an earlier version of {record.parent}"
    return ""


def ancestry(record: VariantRecord, by_name: ByName) -> list[VariantRecord]:
    """Return a variant, its parent, and so on, as far as each was made from the present weights of the next."""
    line = [record]
    while (above := line[-1].parent) is not None and not _broken(line[-1], by_name):
        if by_name[above] in line:
            break
        line.append(by_name[above])
    return line


def with_ancestors(
    study: Study, records: Iterable[VariantRecord], known: Mapping[str, VariantRecord] | None = None
) -> dict[str, VariantRecord]:
    """Return variants and everything they descend from that can be read, by name; `known` is what is read already."""
    by_name = {record.name: record for record in records}
    for record in list(by_name.values()):
        parent = record.parent
        while parent is not None and parent not in by_name:
            try:
                by_name[parent] = (known or {}).get(parent) or study.read_variant(parent)
            except (StudyError, IntegrityError, UsageError):
                # Gone, or as good as gone: what descends from it is stale.
                break
            parent = by_name[parent].parent
    return by_name


def renewal(record: VariantRecord) -> str:
    """Return the command that makes a variant again: the one that made it, without the paths that were typed."""
    words = shlex.split(record.stamp.command)
    return command_line(words if "--force" in words else [*words, "--force"])


def unproven_models(
    study: Study, records: Iterable[VariantRecord], *, retested: Collection[str] = ()
) -> tuple[tuple[str, str], ...]:
    """Return which trainings that variants come from are not shown to have learned anything: what it is, and why.

    By their validation images, and by the test results that are stored; not by those of variants in `retested`, which
    are about to be replaced.
    """
    records = tuple(records)
    return unproven_of(records, with_ancestors(study, records), _stored_findings(study, retested))


def caveats_of(records: Sequence[VariantRecord], by_name: ByName, findings: Findings) -> tuple[str, ...]:
    """Return what must be known of variants before believing results on them, each sentence with its stamp.

    First what is not shown to have learned anything, by the records and by the `findings` of the test results, then
    what is stale. `by_name` has the variants and what they descend from.
    """
    sentences = [caveat(model, finding) for model, finding in unproven_of(records, by_name, findings)]
    sentences += _stale_caveats(by_name)
    return tuple(dict.fromkeys(sentences))


def in_fold(fold: str, sentences: Iterable[str]) -> list[str]:
    """Return caveats of the variants of a fold, whose name stands before theirs; no name, no change."""
    if not fold:
        return list(sentences)
    return [f"{stamp}: {fold}/{rest}" for stamp, _, rest in (text.partition(": ") for text in sentences)]


def unproven_of(records: Iterable[VariantRecord], by_name: ByName, findings: Findings) -> tuple[tuple[str, str], ...]:
    """Return what `unproven_models` does, of variants that are read already, as `caveats_of` has them."""
    lines = [ancestry(record, by_name) for record in records]
    unproven = []
    for first in (line[-1] for line in lines):
        # Of a model that is not here any more only the records of those made from it know.
        model = f"the earlier {first.parent} that {first.name} was made from" if first.parent else first.name
        unproven += [(model, finding) for finding in first.unproven]
    tested = {one.name: one for line in lines for one in line}
    unproven += [(one.name, finding) for one in tested.values() for finding in findings(one)]
    return tuple(dict.fromkeys(unproven))


def uses_models(
    run: Run, study: Study, records: Sequence[VariantRecord], *, retested: Collection[str] = ()
) -> tuple[str, ...]:
    """Give a command's tables the stamps of the variants that it shows; return the caveats that these stand for."""
    sentences = caveats_of(records, with_ancestors(study, records), _stored_findings(study, retested))
    run.stamped(stamps_of(sentences))
    return sentences


def _stale_caveats(by_name: ByName) -> list[str]:
    """Return a sentence per stale variant, parents first: that is the order in which to make them again."""
    reasons = outdated(by_name.values())
    sentences = []
    for name in sorted(reasons, key=lambda name: _depth(name, by_name)):
        record = by_name[name]
        how = "Make it again"
        if record.parent not in by_name:
            how = f"Make {record.parent} again, then this variant"
        elif record.parent in reasons:
            how = "Then make this variant again"
        sentences.append(
            f"{STALE}: {name} {reasons[name]}. Its comparison with the present models cannot show what compression "
            f'costs. {how}: run "{renewal(record)}".'
        )
    return sentences


def _depth(name: str, by_name: ByName) -> int:
    passed: list[str] = []
    while name in by_name and name not in passed:
        passed.append(name)
        name = by_name[name].parent or ""
    return len(passed)


def _stored_findings(study: Study, retested: Collection[str]) -> Findings:
    """Return what reads the findings of a variant's test results, and of the `retested` finds nothing."""

    def findings(record: VariantRecord) -> tuple[str, ...]:
        path = study.variant(record.name) / "evaluation.test.json"
        if record.name in retested or not path.exists():
            return ()
        try:
            return findings_on_test(record, read_record(EvaluationRecord, path))
        except IntegrityError:
            # Results of another chestx, or damaged ones: the commands that show them say so.
            return ()

    return findings


def findings_on_test(record: VariantRecord, evaluation: EvaluationRecord) -> tuple[str, ...]:
    """Return why test results do not show that a variant's present weights have learned anything."""
    results = evaluation.of(record.name)
    if any(row.model_sha256 != record.model_sha256 for row in results.rows):
        return ()
    return tuple(row.finding for row in results.unproven)
