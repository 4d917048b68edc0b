"""`arctic-doctor`: what is installed, what works, and what does not and why.

It must answer on a broken machine above all, so it reads SGLang's source instead of importing it, and a
probe that fails becomes a line of the report. `--sglang PATH` checks the seams against another SGLang instead.
"""

import argparse
import importlib.metadata
import json
import platform as host
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from arctic_sglang import __version__, env
from arctic_sglang.compat import package, source, vendor, verify
from arctic_sglang.compat.seams import SEAMS
from arctic_sglang.features import Feature

PACKAGES = (
    "sglang", "torch", "triton", "transformers", "flashinfer-python", "sglang-kernel", "tokenizers",
    "numba", "numpy", "pyarrow", "polars",
)  # fmt: skip
GROUPS = ("sglang.srt.plugins", "sglang.srt.platforms")

ABOUT = {
    Feature.FLAGS: "arctic flags on SGLang's command line, in YAML and as Engine keywords",
    Feature.CPU: "SGLang on a machine without a GPU",
    Feature.EMBEDDING: "embeddings by the vectorised road",
    Feature.POOLING: "embeddings pooled as the checkpoint says",
    Feature.BATCH: "batch jobs over an engine in the same process",
    Feature.SWIFTKV: "SwiftKV models, which skip half of the prefill",
    Feature.SHIFT: "Shift Parallelism: tensor and sequence parallelism over one KV cache",
    Feature.SPECULATION: "speculative decoding with a suffix index and draft heads",
}


@dataclass
class Report:
    """Everything the doctor found. Plain data: `--json` prints it as it is."""

    arctic_sglang: str = __version__
    python: str = ""
    system: str = ""
    packages: dict[str, str | None] = field(default_factory=dict)
    accelerators: list[str] = field(default_factory=list)
    accelerator_error: str | None = None
    entry_points: dict[str, bool] = field(default_factory=dict)
    filters: dict[str, str] = field(default_factory=dict)
    features: list[dict[str, Any]] = field(default_factory=list)
    seams: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    healthy: bool = False


@dataclass(frozen=True, slots=True)
class Comparison:
    """The table of seams against an SGLang that is not installed. Plain data, as `Report`.

    Attributes:
        sglang: release of the SGLang that was read.
        path: where it was read.
        tested: releases that the seams were tested with.
        is_tested: whether that release is one of them; a start is refused with any other.
        fits: seams by feature: how many there are (`seams`) and how many fit (`fit`).
        misfits: each seam that does not fit, and why.
        fine: the release is tested and every seam fits.
    """

    sglang: str
    path: str
    tested: list[str]
    is_tested: bool
    fits: dict[str, dict[str, int]]
    misfits: list[dict[str, Any]]
    fine: bool


def main(argv: list[str] | None = None) -> int:
    """Command line. Returns 0 if all that is wanted works (with `--sglang`, if every seam fits), else 1."""
    parser = argparse.ArgumentParser(
        prog="arctic-doctor",
        description="Shows what arctic-sglang finds on this machine and whether it works.",
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument(
        "--require", action="append", default=[], choices=[f.value for f in Feature], metavar="FEATURE",
        help="a feature that must work, else exit 1; may be given several times "
        f"({', '.join(f.value for f in Feature)}). Always required: flags; and cpu, on a machine without a GPU",
    )  # fmt: skip
    parser.add_argument(
        "--sglang", type=Path, metavar="PATH",
        help="check the seams against another SGLang instead of this machine: a wheel, or a folder that holds the "
        "package sglang. It is read and not imported, so it need not be installed. Exit 1 if a seam does not fit",
    )  # fmt: skip
    args = parser.parse_args(argv)
    if args.sglang is not None:
        if args.require:
            parser.error("--sglang checks the seams of every feature; leave --require out")
        try:
            comparison = compare(args.sglang)
        except package.NoSGLangError as error:
            parser.error(f"--sglang: {error}")
        print(json.dumps(asdict(comparison), indent=2) if args.json else render_comparison(comparison))
        return 0 if comparison.fine else 1
    report = examine(frozenset(Feature(name) for name in args.require))
    print(json.dumps(asdict(report), indent=2) if args.json else render(report))
    return 0 if report.healthy else 1


def examine(required: frozenset[Feature] = frozenset()) -> Report:
    """Looks at this machine. Never raises for what it finds there."""
    report = Report(
        python=sys.version.split()[0], system=f"{host.system()} {host.release()} {host.machine()}"
    )
    report.packages = {name: _version(name) for name in PACKAGES}
    _probe(report, "accelerators", lambda: _find_accelerators(report))
    report.entry_points = {group: _has_entry_point(group) for group in GROUPS}
    report.filters = env.plugin_filters()
    wanted = set(required) | {Feature.FLAGS}
    if not report.accelerators and not env.cpu_engine_requested():
        wanted.add(Feature.CPU)
    _probe(report, "seams", lambda: _check_seams(report, frozenset(wanted)))
    report.notes += _plugin_notes(report)
    broken = [f["name"] for f in report.features if f["wanted"] and not f["works"]]
    # no features listed means that the check itself failed
    report.healthy = bool(report.features) and not broken and all(report.entry_points.values())
    return report


def render(report: Report) -> str:
    """The report for a person."""
    lines = [f"arctic-sglang {report.arctic_sglang}", f"  python {report.python}, {report.system}"]
    lines += [f"  {name} {version or 'not installed'}" for name, version in report.packages.items()]
    lines += ["", "accelerators"]
    lines += [f"  {name}" for name in report.accelerators] or [f"  none{_reason(report.accelerator_error)}"]
    lines += ["", "plugin"]
    lines += [f"  {_mark(ok)} entry point in {group}" for group, ok in report.entry_points.items()]
    lines += [f"  set  {name}={value}" for name, value in report.filters.items()]
    lines += ["", "features"]
    for feature in report.features:
        wanted = "wanted" if feature["wanted"] else "not asked for"
        mark = _mark(feature["works"]) if feature["works"] or feature["wanted"] else "no  "
        lines.append(f"  {mark} {feature['name']:9} {feature['about']} ({wanted})")
        lines += [f"         {problem}" for problem in feature["problems"]]
    lines += ["", "seams"]
    for seam in report.seams:
        lines.append(f"  {_mark(not seam['problems'])} {seam['id']:20} {seam['kind']:9} {seam['target']}")
        lines += [f"         {problem}" for problem in seam["problems"]]
    lines += ["", *[f"note: {note}" for note in report.notes]] if report.notes else []
    lines += ["", "healthy" if report.healthy else "NOT healthy: something wanted does not work (see above)"]
    return "\n".join(lines)


def compare(path: Path) -> Comparison:
    """Checks every seam against the SGLang at `path`, by reading it.

    Args:
        path: a wheel of SGLang, or a folder that holds the package `sglang`.

    Raises:
        package.NoSGLangError: there is none.
    """
    with package.opened(path) as root:
        release = verify.sglang_version(root)
        problems = verify.misfits(SEAMS, root)
    misfits = []
    for seam in SEAMS:
        if texts := [p.text for p in problems if p.seam == seam.id]:
            misfits.append({"id": seam.id, "feature": seam.feature, "kind": seam.kind, "problems": texts})
    fits = {}
    for feature in Feature:
        count = sum(seam.feature is feature for seam in SEAMS)
        fits[feature.value] = {
            "seams": count, "fit": count - sum(one["feature"] is feature for one in misfits)
        }  # fmt: skip
    is_tested = all(verify.is_tested(seam, release) for seam in SEAMS)
    return Comparison(
        sglang=release, path=str(path), tested=sorted({seam.versions for seam in SEAMS}), is_tested=is_tested,
        fits=fits, misfits=misfits, fine=is_tested and not misfits,
    )  # fmt: skip


def render_comparison(found: Comparison) -> str:
    """The comparison for a person."""
    lines = [f"SGLang {found.sglang} at {found.path}, read and not imported", ""]
    tested = "tested" if found.is_tested else "not tested, so a start is refused"
    tested += f" (SGLang {', '.join(found.tested)})"
    lines.append(f"  {_mark(found.is_tested)} release {found.sglang}: {tested}")
    for name, count in found.fits.items():
        ok = count["fit"] == count["seams"]
        lines.append(f"  {_mark(ok)} {name:11} {count['fit']:3} of {count['seams']:3} seams fit")
    for one in found.misfits:
        lines += ["", f"{one['id']} ({one['kind']})", *[f"  {problem}" for problem in one["problems"]]]
    seams, fit = (sum(count[key] for count in found.fits.values()) for key in ("seams", "fit"))
    total = f"{fit} of {seams} seams fit"
    if found.fine:
        return "\n".join([*lines, "", total])
    hint = "Names, parameters and members were compared: a seam that fits may still mean something else."
    return "\n".join([*lines, "", f"{total}. {hint}"])


def _probe(report: Report, what: str, action: Callable[[], None]) -> None:
    try:
        action()
    except Exception as error:  # noqa: BLE001  # the doctor's boundary: any failure is a finding
        report.notes.append(f"the check of {what} failed: {type(error).__name__}: {error}")


def _find_accelerators(report: Report) -> None:
    try:
        kind = vendor.accelerator()
        if kind == "cuda":
            report.accelerators = vendor.cuda_devices()
        elif kind is not None:
            report.accelerators = [kind]
    except (ImportError, OSError, RuntimeError) as error:  # torch missing, half installed, or no driver
        report.accelerator_error = f"{type(error).__name__}: {error}"


def _check_seams(report: Report, wanted: frozenset[Feature]) -> None:
    problems = verify.verify(SEAMS, source.installed_root())
    for seam in SEAMS:
        texts = [p.text for p in problems if p.seam == seam.id]
        report.seams.append(
            {"id": seam.id, "feature": seam.feature, "kind": seam.kind, "target": seam.target,
             "versions": seam.versions, "why": seam.why, "problems": texts}
        )  # fmt: skip
    for feature in Feature:
        texts = [f"{p.seam}: {p.text}" for p in problems if p.feature is feature]
        texts += _needs(feature, report)
        report.features.append(
            {"name": feature, "about": ABOUT[feature], "wanted": feature in wanted, "works": not texts,
             "problems": texts}
        )  # fmt: skip


def _needs(feature: Feature, report: Report) -> list[str]:
    """What a feature lacks on this machine, beyond its seams."""
    lacks = []
    if report.packages.get("torch") is None:
        lacks.append("torch is not installed; pip install arctic-sglang brings it")
    if feature is Feature.CPU and report.accelerators:
        lacks.append(
            "this machine has an accelerator; hide it with CUDA_VISIBLE_DEVICES='' to run on the CPU"
        )
    return lacks


def _plugin_notes(report: Report) -> list[str]:
    notes = [
        f"no entry point 'arctic' in {group}: SGLang will not find the plugin; install the package with pip"
        for group, present in report.entry_points.items()
        if not present
    ]
    plugins = report.filters.get("SGLANG_PLUGINS")
    if plugins and "arctic" not in [name.strip() for name in plugins.split(",")]:
        notes.append(f"SGLANG_PLUGINS={plugins} keeps the plugin from loading; add arctic to it, or unset it")
    if report.filters.get("SGLANG_PLATFORM", "arctic") != "arctic":
        notes.append("SGLANG_PLATFORM names another platform, so SGLang skips this plugin; unset it")
    return notes


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _has_entry_point(group: str) -> bool:
    return any(point.name == "arctic" for point in importlib.metadata.entry_points(group=group))


def _mark(ok: bool) -> str:
    return "ok  " if ok else "FAIL"


def _reason(error: str | None) -> str:
    return f" (torch does not load: {error})" if error else ""


if __name__ == "__main__":
    sys.exit(main())
