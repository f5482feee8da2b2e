"""The command line: zolab doctor, plan, run, claims, new, course, scores."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import zolab
from zolab import chapters, doctor, runner
from zolab.errors import ZolabError


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command; leaves by SystemExit with 0, 1, 2 (usage) or 130 (Ctrl-C)."""
    args = _parser().parse_args(argv)
    try:
        status = args.command(args)
    except ZolabError as error:
        sys.exit(f"zolab: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(status)


def _parser() -> argparse.ArgumentParser:
    about = "train language models with forward passes only"
    parser = argparse.ArgumentParser(prog="zolab", description=about)
    parser.add_argument("--version", action="version", version=zolab.__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    check = commands.add_parser("doctor", help="what this machine has and which fits")
    check.add_argument("--scale", choices=doctor.SCALES, help="fail if it does not fit")
    check.set_defaults(command=_doctor)

    plan = commands.add_parser(
        "plan", help="what fits a machine, how fast, by which way"
    )
    plan.add_argument("model", help="facebook/opt-13b, or a folder with a config.json")
    plan.add_argument("--device", help="its memory: 8GB (default: this machine's)")
    plan.add_argument("--ram", help="host memory: 64GB (default: this machine's)")
    plan.add_argument("--batch", default="16x512", help="sequences x tokens: 16x512")
    plan.add_argument("--dtype", default="bf16", help="bf16, fp16 or fp32")
    plan.add_argument("--link", help="to the device: 12GB/s (default: measured)")
    plan.add_argument("--flops", help="in products: 100T (default: measured)")
    plan.add_argument("--disk", help="a disk's rate, where RAM is short: 3GB/s")
    plan.add_argument("--slots", type=int, default=2, help="blocks on the device")
    plan.add_argument(
        "--write-back", default="1", help='every so many steps, or "never"'
    )
    plan.add_argument(
        "--embeddings", default="device", help='"ram": rows come up as they are read'
    )
    plan.set_defaults(command=_plan)

    run = commands.add_parser("run", help="execute chapters, with or without Jupyter")
    run.add_argument("chapter", nargs="*", help="two digits: 11")
    run.add_argument("--all", action="store_true", help="every chapter there is")
    run.add_argument(
        "--scale",
        choices=doctor.SCALES,
        default=None,
        help="default: ZOLAB_SCALE, else the largest that fits this machine",
    )
    run.add_argument("--keep-going", action="store_true", help="past a failed chapter")
    run.add_argument("--show", action="store_true", help="print what the cells print")
    run.add_argument("--save", action="store_true", help="in a kernel; keep outputs")
    run.add_argument("--folder", type=Path, help="of the notebooks")
    run.set_defaults(command=_run)

    claims = commands.add_parser("claims", help="the ledger: paper beside measured")
    claims.set_defaults(command=_claims)

    new = commands.add_parser("new", help="write a chapter's skeleton")
    new.add_argument("chapter", help="two digits: 41")
    new.add_argument("name", help='its title: "Quantizers"')
    new.set_defaults(command=_new)

    course = commands.add_parser("course", help="a folder a student, no solutions")
    course.add_argument("--students", type=Path, help="a file with a name a line")
    course.add_argument("--out", type=Path, default=Path("course"))
    course.set_defaults(command=_course)

    scores = commands.add_parser("scores", help="a course's scores, as CSV")
    scores.add_argument("folder", type=Path)
    scores.set_defaults(command=_scores)
    return parser


def _doctor(args: argparse.Namespace) -> int:
    checks = doctor.examine(scale=args.scale)
    print("\n".join(str(c) for c in checks))
    bad = [c.name for c in checks if c.state == "bad"]
    print(f"\nnot good enough: {', '.join(bad)}" if bad else "\nall is well")
    return 1 if bad else 0


def _plan(args: argparse.Namespace) -> int:
    from zolab import plan
    from zolab.plan.ask import answer

    fields = vars(args) | {"command": None}
    try:
        lines = answer(**{k: v for k, v in fields.items() if k != "command"})
    except plan.PlanError as error:
        raise ZolabError(str(error)) from None
    print("\n".join(lines))
    return 0


def _run(args: argparse.Namespace) -> int:
    scale = _scale(args.scale)
    there = chapters.find(args.folder)
    unknown = [n for n in args.chapter if n not in there]
    if unknown or not (args.chapter or args.all):
        what = f"no chapter {', '.join(unknown)}" if unknown else "which chapter?"
        raise ZolabError(f"{what}; there are {', '.join(there)} (or --all)")
    todo = list(there.values()) if args.all else [there[n] for n in args.chapter]
    failed = []
    try:
        for chapter in todo:
            if not _run_one(chapter, scale, args):
                failed.append(chapter.number)
                if not args.keep_going:
                    break
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        _print_claims_of_this_run()
        raise
    _print_claims_of_this_run()
    if failed:
        print(f"\nfailed: chapter {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _scale(asked: str | None) -> str:
    scale = asked or os.environ.get("ZOLAB_SCALE") or doctor.fitting_scale()
    if scale not in doctor.SCALES:
        choices = ", ".join(doctor.SCALES)
        raise ZolabError(f"ZOLAB_SCALE is {scale!r}; it can be {choices}")
    return scale


def _run_one(chapter: chapters.Chapter, scale: str, args: argparse.Namespace) -> bool:
    print(f"chapter {chapter.number} {chapter.name}, scale {scale}", flush=True)
    began = time.perf_counter()
    bar = _bar(began)
    try:
        if args.save:
            from zolab import kernel  # needs the packages of lab

            seconds = kernel.save(chapter, scale=scale, progress=bar)
            print(f"  {seconds:.0f} s, outputs stored in {chapter.path.name}")
            return True
        times = runner.run(chapter, scale=scale, show=args.show, progress=bar)
    except chapters.ChapterError as error:
        print(f"\n{error}\n", file=sys.stderr)
        return False
    total = time.perf_counter() - began
    print(f"  {len(times)} cells in {total:.1f} s; the slowest:")
    for cell, seconds in sorted(times, key=lambda t: -t[1])[:3]:
        print(f"  {seconds:8.1f} s  cell {cell.number:<3} {cell.first_line[:60]}")
    return True


def _bar(began: float) -> Callable[[int, int, str], None]:
    """A progress line on a terminal; in a file or a pipe, one line a cell."""
    out = sys.stderr
    live = out.isatty()

    def progress(done: int, total: int, doing: str) -> None:
        seconds = time.perf_counter() - began
        full = 20 * done // max(total, 1)
        bar = "#" * full + "." * (20 - full)
        text = f"  [{bar}] {done}/{total} {seconds:6.1f} s  {doing[:40]}".rstrip()
        end = "\n" if not live or done == total else ""
        out.write(f"\r\x1b[K{text}{end}" if live else text + end)
        out.flush()

    return progress


def _print_claims_of_this_run() -> None:
    """The rows that the cells' claim(...) calls left, where a cell made any."""
    module = sys.modules.get("zolab.lab.claims")
    if module is None:
        return
    text = module.report()
    if text:
        print(f"\n{text}")


def _claims(args: argparse.Namespace) -> int:
    # here, since doctor and run must work where lab is broken or left out
    from zolab.lab.claims import CAVEAT, VERDICTS, ledger

    claims = sorted(ledger().values(), key=lambda c: VERDICTS.index(c.verdict))
    counts = Counter(c.verdict for c in claims)
    print(", ".join(f"{n} {verdict}" for verdict, n in counts.items()) or "no claims")
    for c in claims:
        paper = c.paper + ("" if c.checked else " (unverified)")
        print(f"\n{c.id}, chapter {c.chapter}, {c.kind}: {c.verdict}")
        print(f"  {c.text}")
        print(f"  paper: {paper}; {c.source}")
        print(f"  distance: {c.distance}; again: {c.command}")
    print(f"\n{CAVEAT}")
    return 0


def _new(args: argparse.Namespace) -> int:
    from zolab.lab.skeleton import new

    for path in new(args.chapter, args.name, _checkout()):
        print(path)
    print(f"now: zolab run {args.chapter} --scale laptop --save; make test")
    return 0


def _course(args: argparse.Namespace) -> int:
    from zolab.lab.course import build

    names = ["student"]
    if args.students is not None:
        if not args.students.exists():
            raise ZolabError(f"no file {args.students}; it has a name a line")
        lines = args.students.read_text("utf-8").splitlines()
        names = [line.strip() for line in lines if line.strip()]
    for folder in build(args.out, names, _checkout()):
        print(folder)
    return 0


def _scores(args: argparse.Namespace) -> int:
    from zolab.lab.course import scores, write

    write(scores(args.folder), sys.stdout)
    return 0


def _checkout() -> Path:
    """The folder that holds notebooks/, exercises/ and solutions/."""
    for place in (Path(), Path(__file__).parent.parent):
        if (place / "notebooks").is_dir() and (place / "solutions").is_dir():
            return place.resolve()
    raise ZolabError("no notebooks/ and solutions/ here: run it in a checkout")
