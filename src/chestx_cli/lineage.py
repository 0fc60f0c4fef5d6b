"""What a variant descends from: whether that is still there, and whether it is shown to have learned anything."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from chestx_cli.audit import STALE, stamps_of
from chestx_cli.errors import IntegrityError, StudyError, UsageError
from chestx_cli.learned import caveat
from chestx_cli.records import EvaluationRecord
from chestx_cli.study import read_record

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from chestx_cli.records import VariantRecord
    from chestx_cli.stage import Run
    from chestx_cli.study import Study

    ByName = Mapping[str, VariantRecord]


def outdated(records: Iterable[VariantRecord]) -> dict[str, str]:
    """Return why variants are stale, by name; the text continues a sentence that begins with the name.

    A variant is stale where its parent is gone, has other weights than those it was made from, or is stale itself.
    """
    by_name = {record.name: record for record in records}
    found = {}
    for record in by_name.values():
        above, passed = record, {record.name}
        while above.parent is not None:
            broken = _broken(above, by_name)
            # Only edited records go in a circle.
            if above.parent == record.name:
                found[record.name] = f"is recorded as made from {record.parent}, which descends from it"
                break
            if broken or above.parent in passed:
                found[record.name] = broken if above is record else f"was made from {record.parent}, which is stale"
                break
            passed.add(above.parent)
            above = by_name[above.parent]
    return found


def _broken(record: VariantRecord, by_name: ByName) -> str:
    """Return what is wrong between a variant and its parent; empty where it was made from the present one."""
    parent = by_name.get(record.parent or "")
    if parent is None:
        return f"was made from {record.parent}, which is gone"
    if parent.model_sha256 != record.parent_sha256:
        return f"was made from an earlier {record.parent} than the present one"
    return ""


def ancestry(record: VariantRecord, by_name: ByName) -> list[VariantRecord]:
    """Return a variant, its parent, and so on, as far as each was made from the present weights of the next."""
    found = [record]
    while (above := found[-1].parent) is not None and not _broken(found[-1], by_name):
        if by_name[above] in found:
            break
        found.append(by_name[above])
    return found


def with_ancestors(study: Study, records: Iterable[VariantRecord]) -> dict[str, VariantRecord]:
    """Return variants and everything they descend from that can be read, by name."""
    found = {record.name: record for record in records}
    for record in list(found.values()):
        parent = record.parent
        while parent is not None and parent not in found:
            try:
                found[parent] = study.read_variant(parent)
            except (StudyError, IntegrityError, UsageError):
                # Gone, or as good as gone: what descends from it is stale.
                break
            parent = found[parent].parent
    return found


def renewal(record: VariantRecord) -> str:
    """Return the command that makes a variant again: the one that made it, without the paths that were typed."""
    words = shlex.split(record.stamp.command)
    return shlex.join(words if "--force" in words else [*words, "--force"])


def unproven_models(
    study: Study, records: Iterable[VariantRecord], *, retested: Collection[str] = ()
) -> tuple[tuple[str, str], ...]:
    """Return which trainings that variants come from are not shown to have learned anything: what it is, and why.

    By their validation images, and by the test results that are stored; not by those of variants in `retested`, which
    are about to be replaced.
    """
    records = tuple(records)
    by_name = with_ancestors(study, records)
    lines = [ancestry(record, by_name) for record in records]
    tested = {one.name: one for line in lines for one in line if one.name not in retested}
    found = []
    for first in (line[-1] for line in lines):
        # Of a model that is not here any more only the records of those made from it know.
        model = f"the earlier {first.parent} that {first.name} was made from" if first.parent else first.name
        found += [(model, finding) for finding in first.unproven]
    found += [(one.name, finding) for one in tested.values() for finding in _test_findings(study, one)]
    return tuple(dict.fromkeys(found))


def model_caveats(
    study: Study, records: Sequence[VariantRecord], *, retested: Collection[str] = (), fold: str = ""
) -> tuple[str, ...]:
    """Return what must be known of variants before believing results on them, each sentence with its stamp.

    First what is not shown to have learned anything, as `unproven_models` has it, then what is stale.
    """
    unproven = unproven_models(study, records, retested=retested)
    found = [caveat(model, finding) for model, finding in unproven]
    found += _stale_caveats(with_ancestors(study, records))
    if fold:
        parted = (text.partition(": ") for text in found)
        found = [f"{stamp}: {fold}/{rest}" for stamp, _, rest in parted]
    return tuple(dict.fromkeys(found))


def uses_models(
    run: Run, study: Study, records: Sequence[VariantRecord], *, retested: Collection[str] = (), fold: str = ""
) -> tuple[str, ...]:
    """Give a command's tables the stamps of the variants that it shows; return the caveats that these stand for."""
    found = model_caveats(study, records, retested=retested, fold=fold)
    run.stamped(stamps_of(found))
    return found


def _stale_caveats(by_name: ByName) -> list[str]:
    """Return a sentence per stale variant, parents first: that is the order in which to make them again."""
    reasons = outdated(by_name.values())
    found = []
    for name in sorted(reasons, key=lambda name: _depth(name, by_name)):
        record = by_name[name]
        how = "Make it again"
        if record.parent not in by_name:
            how = f"Make {record.parent} again, and then it"
        elif record.parent in reasons:
            how = "Make it again after that"
        found.append(
            f"{STALE}: {name} {reasons[name]}. Compared with the present models it says nothing of what compression "
            f'costs. {how}: run "{renewal(record)}".'
        )
    return found


def _depth(name: str, by_name: ByName) -> int:
    passed: list[str] = []
    while name in by_name and name not in passed:
        passed.append(name)
        name = by_name[name].parent or ""
    return len(passed)


def _test_findings(study: Study, record: VariantRecord) -> tuple[str, ...]:
    """Return what the stored test results say of a variant's present weights; nothing where they cannot be read."""
    path = study.variant(record.name) / "evaluation.test.json"
    if not path.exists():
        return ()
    try:
        found = read_record(EvaluationRecord, path).of(record.name)
    except IntegrityError:
        # Results of another chestx, or damaged ones: the commands that show them say so.
        return ()
    if any(row.model_sha256 != record.model_sha256 for row in found.rows):
        return ()
    return tuple(row.finding for row in found.unproven)
