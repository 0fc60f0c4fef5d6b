"""The report: a study gathered into plain sections, which one template renders as a page and another as Markdown."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from chestx_cli.audit import caveats
from chestx_cli.benchmark_records import EAGER, BenchmarkRecord
from chestx_cli.errors import IntegrityError
from chestx_cli.figure_inputs import judged_together, same_baseline, still_compared
from chestx_cli.lineage import model_caveats, outdated, with_ancestors
from chestx_cli.printable import printable
from chestx_cli.record import NOT_A_DEVICE, Column, Record, columns
from chestx_cli.records import EvaluationRecord
from chestx_cli.sensitivity_records import SensitivityRecord
from chestx_cli.split_records import TEST
from chestx_cli.stage import available_threads
from chestx_cli.study import BASELINE, read_record

if TYPE_CHECKING:
    from chestx_cli.benchmark_records import BenchmarkRow
    from chestx_cli.records import SplitRecord, VariantRecord
    from chestx_cli.result_rows import ComparisonRow, EvaluationRow
    from chestx_cli.study import Split, Study

M = TypeVar("M", EvaluationRecord, BenchmarkRecord, SensitivityRecord)

MOST_CRITICAL, MOST_ROBUST = 10, 5
UNFOLDED_ROWS = 16
CPU = "cpu"


@dataclass(frozen=True, kw_only=True)
class Text:
    """A paragraph; the tone is empty, `hint` (something is not there yet) or `warning`."""

    kind: ClassVar[str] = "text"
    text: str
    tone: str = ""


@dataclass(frozen=True, kw_only=True)
class Bullets:
    """A list of sentences."""

    kind: ClassVar[str] = "bullets"
    items: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of texts; `styles` has `number`, `code`, `prose` or nothing for each column."""

    kind: ClassVar[str] = "table"
    caption: str
    headings: tuple[str, ...]
    styles: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    folded: bool = False


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture as a data URI for the page and as a path relative to the Markdown file."""

    kind: ClassVar[str] = "picture"
    title: str
    caption: str
    uri: str
    link: str


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """A row of small pictures."""

    kind: ClassVar[str] = "gallery"
    title: str
    pictures: tuple[Picture, ...]
    caption: str


# Heading, format spec, one value per row.
Shown = tuple[str, str, Sequence[object]]
Block = Text | Bullets | Table | Picture | Gallery
Drawn = dict[str, Picture]


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading and what stands under it."""

    title: str
    blocks: tuple[Block, ...]
    # What stands before each of its tables, such as UNGROUPED.
    stamps: tuple[str, ...] = ()

    @property
    def anchor(self) -> str:
        """Return the heading as the page's link target."""
        return re.sub(r"[^a-z]+", "-", self.title.lower()).strip("-")


@dataclass(frozen=True, kw_only=True)
class VariantFacts:
    """A variant of the current split with those results that are of its current weights."""

    record: VariantRecord
    evaluation: EvaluationRecord | None
    externals: tuple[EvaluationRecord, ...]
    benchmarks: tuple[BenchmarkRecord, ...]
    sensitivity: SensitivityRecord | None

    @property
    def name(self) -> str:
        """Return the variant's name."""
        return self.record.name

    @property
    def result(self) -> EvaluationRow | None:
        """Return its test results."""
        return self.evaluation.rows[0] if self.evaluation else None

    @property
    def comparison(self) -> ComparisonRow | None:
        """Return its comparison with the baseline on the test images."""
        return self.evaluation.comparison if self.evaluation else None

    def speed(self, device: str, runtime: str) -> BenchmarkRow | None:
        """Return its row of the benchmark on a device under a runtime."""
        found = (row for b in self.benchmarks if b.device == device for row in b.rows if row.runtime == runtime)
        return next(found, None)


@dataclass(frozen=True, kw_only=True)
class StudyFacts:
    """A study as one plain value; `stale` says what was left out of it and why.

    Images are named by their ids, and by their paths too where `show_paths` is set.
    """

    study: Study
    split_record: SplitRecord
    split: Split
    variants: tuple[VariantFacts, ...]
    stale: tuple[str, ...]
    show_paths: bool
    # What must be known of the variants, each sentence with its stamp, and those that are stale.
    model_caveats: tuple[str, ...] = ()
    outdated: Collection[str] = ()
    flip_pictures: Mapping[str, tuple[Picture, ...]] = field(default_factory=dict)

    def files(self, image_ids: Sequence[str]) -> list[Shown]:
        """Return the column that tells the files of some images of the split; none unless they are to be shown."""
        if not self.show_paths:
            return []
        path_of = dict(zip(self.split.ids.tolist(), self.split.paths.tolist(), strict=True))
        return [("File", "", [path_of[image_id] for image_id in image_ids])]

    def variant(self, name: str) -> VariantFacts | None:
        """Return a variant by name."""
        return next((found for found in self.variants if found.name == name), None)

    @property
    def baseline(self) -> VariantFacts | None:
        """Return the baseline."""
        return self.variant(BASELINE)

    @property
    def devices(self) -> tuple[str, ...]:
        """Return the devices that any variant was timed on, the CPU first."""
        return tuple(
            sorted({b.device for v in self.variants for b in v.benchmarks}, key=lambda name: (name != CPU, name))
        )

    def same_run_speed(self, benchmark: BenchmarkRecord, runtime: str) -> BenchmarkRow | None:
        """Return the FP32 baseline's row under a runtime where it was timed in the same run."""
        baseline = self.variant(benchmark.baseline) if benchmark.baseline else None
        timed = (b for b in (baseline.benchmarks if baseline else ()) if b.stamp == benchmark.stamp)
        return next((row for b in timed for row in b.rows if row.runtime == runtime), None)

    def marked(self, variant: str, verdict: str) -> str:
        """Return a verdict on a variant, marked where the variant is stale."""
        return f"{verdict} (stale)" if variant in self.outdated else verdict

    def test_size(self) -> tuple[int, int]:
        """Return the number of test images and of the patients they come from."""
        rows = self.split.indices("test")
        return len(rows), len(set(self.split.groups[rows].tolist()))

    def split_caveats(self) -> tuple[str, ...]:
        """Return what a reader must know of the split before believing results on it."""
        return caveats(self.split, self.split_record.group_rules)

    def caveats(self) -> tuple[str, ...]:
        """Return what a reader must know of the split and of the variants."""
        return (*self.split_caveats(), *self.model_caveats)


def gather(study: Study, *, show_paths: bool = False) -> StudyFacts:
    """Return what a study holds; raises StudyError where it has no split, IntegrityError for a damaged document."""
    split_record, split = study.read_split_record(), study.read_split()

    def read(name: str) -> VariantRecord | str:
        """Return a variant, or why it is left out."""
        if study.read_variant(name).split_sha256 != split.sha256:
            return f"variant {name}, which was trained on another split"
        try:
            return study.read_usable_variant(name, split)
        except IntegrityError as error:
            return f"variant {name}: {error.fact}"

    # Hashing the models takes most of it, and does not hold the interpreter.
    with ThreadPoolExecutor(available_threads()) as pool:
        found = list(pool.map(read, study.variant_names()))
    stale = [reason for reason in found if isinstance(reason, str)]
    records = {record.name: record for record in found if not isinstance(record, str)}
    shown = list(records.values())
    return StudyFacts(
        study=study,
        split_record=split_record,
        split=split,
        variants=_compared_together([_gather_variant(study, record, records, stale) for record in records.values()]),
        stale=tuple(stale),
        show_paths=show_paths,
        model_caveats=model_caveats(study, shown),
        outdated=outdated(with_ancestors(study, shown).values()),
    )


def _compared_together(variants: list[VariantFacts]) -> tuple[VariantFacts, ...]:
    """Return variants with their comparisons corrected over all of them, on each set of images for itself."""
    tests = judged_together([found.evaluation for found in variants])
    names = dict.fromkeys(e.split for found in variants for e in found.externals)
    others = [
        judged_together([next((e for e in found.externals if e.split == name), None) for found in variants])
        for name in names
    ]
    return tuple(
        dataclasses.replace(found, evaluation=tests[i], externals=tuple(e for one in others if (e := one[i])))
        for i, found in enumerate(variants)
    )


def _gather_variant(
    study: Study, record: VariantRecord, records: dict[str, VariantRecord], stale: list[str]
) -> VariantFacts:
    folder = study.variant(record.name)

    def current(kind: type[M], file: str, what: str) -> M | None:
        if not (folder / file).exists():
            return None
        found = read_record(kind, folder / file)
        if isinstance(found, SensitivityRecord):
            hashes = {found.model_sha256}
        else:
            hashes = {row.model_sha256 for row in found.rows if row.variant == record.name}
            if len(found.rows) != len(found.of(record.name).rows):
                hashes.add("")
        if (
            hashes == {record.model_sha256}
            and getattr(found, "split_sha256", record.split_sha256) == record.split_sha256
        ):
            return found
        stale.append(f"the {what} of {record.name}, which was made with other weights or another split")
        return None

    benchmarks = []
    for path in sorted(folder.glob("benchmark.*.json")):
        found = current(BenchmarkRecord, path.name, f"benchmark ({path.name.split('.')[1]})")
        if found and same_baseline(found, records):
            benchmarks.append(found)
        elif found:
            stale.append(f"the benchmark of {record.name}, whose ratios are against an earlier {found.baseline}")
    evaluations: dict[str, EvaluationRecord] = {}
    for path in sorted(folder.glob("evaluation.*.json")):
        name = path.name.split(".")[1]
        what = "evaluation" if name == TEST else f"evaluation on {name}"
        evaluation = current(EvaluationRecord, path.name, what)
        if evaluation and not same_baseline(evaluation, records):
            stale.append(f"the paired test of {record.name}, which is against an earlier {evaluation.baseline}")
        if evaluation:
            evaluations[name] = still_compared(evaluation, records)
    sensitivity = current(SensitivityRecord, "sensitivity.json", "sensitivity")
    return VariantFacts(
        record=record,
        evaluation=evaluations.pop(TEST, None),
        externals=tuple(evaluations.values()),
        benchmarks=tuple(benchmarks),
        sensitivity=sensitivity,
    )


def percent(value: float, digits: int = 1) -> str:
    """Return a rate as `96.4 %`; a rate below 1 is never rounded up to 100 %."""
    while 0 < value < 1 and digits < 6 and f"{value:.{digits}%}" in {f"{0:.{digits}%}", f"{1:.{digits}%}"}:
        digits += 1
    return f"{100 * value:.{digits}f} %"


def rate(part: int, whole: int) -> float:
    """Return part / whole, or NaN of nothing."""
    return part / whole if whole else float("nan")


def same_runtime_speedup(
    facts: StudyFacts, benchmark: BenchmarkRecord, row: BenchmarkRow
) -> tuple[float | None, tuple[float, float] | None]:
    """Return how many times as fast as the FP32 baseline a variant is under the same runtime and in the same run.

    With the ratio's 95 % interval, where it has one.
    """
    # The record's own ratios are medians over interleaved rounds: drift of the machine cancels out in them.
    if row.runtime == benchmark.best_fp32_runtime and row.speedup_over_best_fp32 is not None:
        return row.speedup_over_best_fp32, row.speedup_over_best_fp32_interval
    if row.runtime == EAGER and row.speedup_over_eager is not None:
        return row.speedup_over_eager, row.speedup_over_eager_interval
    baseline = facts.same_run_speed(benchmark, row.runtime)
    return (baseline.latency_p50_ms / row.latency_p50_ms if baseline else None), None


def make_table(
    caption: str, shown: Sequence[Shown], *, folded: bool = False, styles: Mapping[str, str] = MappingProxyType({})
) -> Table:
    """Return a table; columns of numbers are told by their values, the style of others is given by heading."""

    def style(heading: str, values: Sequence[object]) -> str:
        numbers = all(isinstance(v, (int, float, tuple)) or v is None for v in values)
        return styles.get(heading, "number" if numbers and not all(isinstance(v, bool) for v in values) else "")

    def cell(spec: str, value: object) -> str:
        # Between signed numbers a dash would be read as a sign.
        text = Column(heading="", spec=spec, separator=" to " if spec.startswith("+") else "–").text(value)
        return re.sub(r"%(?!–)", " %", text).replace("%–", "–") if spec.endswith("%") else text

    texts = [[cell(spec, value) for value in values] for _, spec, values in shown]
    return Table(
        caption=caption,
        headings=tuple(heading for heading, _, _ in shown),
        styles=tuple(style(heading, values) for heading, _, values in shown),
        rows=tuple(zip(*texts, strict=True)),
        folded=folded,
    )


def table_of(
    caption: str, rows: Sequence[Any], *, without: Sequence[str] = (), extra: Sequence[Shown] = (), folded: bool = False
) -> Table:
    """Return dataclass rows as a table of their shown fields, and of `extra` columns after them."""
    shown = {name: column for name, column in columns(type(rows[0])).items() if name not in without}
    own = [(column.heading, column.spec, [getattr(row, name) for row in rows]) for name, column in shown.items()]
    return make_table(caption, [*own, *extra], folded=folded)


def pairs_table(caption: str, pairs: Sequence[tuple[str, str]], *, folded: bool = False) -> Table:
    """Return names and values as a table."""
    names, values = [name for name, _ in pairs], [value for _, value in pairs]
    return make_table(caption, [("What", "", names), ("Value", "", values)], folded=folded, styles={"Value": "prose"})


def missing(fact: str, command: str) -> Text:
    """Return the sentence that stands where a part of the study has not been made."""
    return Text(text=f'{fact}: run "{command}".', tone="hint")


def sources(facts: StudyFacts) -> list[tuple[str, Record]]:
    """Return every record that the report rests on with its label, in the order in which they were made."""
    found: list[tuple[str, Record]] = [("split", facts.split_record)]
    for variant in facts.variants:
        found.append((variant.name, variant.record))
        others = ((f"evaluation on {e.split}", e) for e in variant.externals)
        parts = (("evaluation", variant.evaluation), *others, ("sensitivity", variant.sensitivity))
        found += [(f"{name} of {variant.name}", record) for name, record in parts if record]
        found += [(f"benchmark of {variant.name} ({b.device})", b) for b in variant.benchmarks]
    return sorted(found, key=lambda item: item[1].stamp.created)


def _clean(value: object) -> object:
    """Return texts on one line, with what changes how others are shown (as right-to-left marks do) spelled out."""
    if isinstance(value, str) and not hasattr(value, "__html__"):
        return printable(value)
    return value


def escape_markdown(value: object) -> str:
    """Return a value as Markdown text that is shown as it is, also in a table's cell."""
    text = str(_clean(value)).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*\[\]|~$#])", r"\\\1", text)
    # Inside a word an underscore is no emphasis; escaping it would only make file names hard to read.
    text = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", text)
    return re.sub(r"^(\s*\d*)([-+.)])(?=\s)", r"\1\\\2", text)


def render(template: str, **values: object) -> str:
    """Return a template of this package filled with values; all text in them is escaped for its format."""
    import jinja2

    html = template.endswith(".html.j2")
    finalize: Callable[[object], object] = _clean if html else escape_markdown
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("chestx_cli"),
        # Markdown is escaped by `finalize`: HTML's escapes would be shown in it.
        autoescape=html,  # noqa: S701 - Markdown is escaped by `finalize`
        finalize=finalize,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(warning=NOT_A_DEVICE, **values)
