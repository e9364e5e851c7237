"""Compile the Triton kernels ahead of time: no GPU needed, and no request waits for a compiler.

    python -m kernels.aot --targets sm_80,sm_89,sm_90 --cache DIR --json

Every operation of `kernels.triton_ops` names its launches for a model's shapes (`aot_cases`). They run here on tensors
of the meta device, through the launch code that runs on a GPU, and what would be launched is compiled for the named
targets. So the constants, the specialisation and the key in Triton's cache are those of the real launch: a process with
``TRITON_CACHE_DIR`` set to that folder finds its kernels there.

The table says for each kernel what the assembler made of it. A kernel fails that spills registers, asks for more shared
memory than its target has, or is a product without tensor-core instructions; the exit status is then 1.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import multiprocessing
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from kernels.dispatch import Compiled, compiling
from kernels.model_shapes import MODEL_SHAPES

__all__ = ["AotCase", "KernelReport", "compile_kernels", "faults"]

# A name, such as "bfloat16 rank 16", and the launches that go under it.
AotCase = tuple[str, Callable[[], object]]

# Bytes of shared memory that a block may have, by compute capability (CUDA programming guide, "Compute Capabilities").
_SHARED_LIMITS = {
    80: 163 << 10,
    86: 99 << 10,
    87: 163 << 10,
    89: 99 << 10,
    90: 227 << 10,
    100: 227 << 10,
    120: 99 << 10,
}


@dataclass(frozen=True)
class KernelReport:
    """What the assembler made of one kernel.

    Attributes:
        kernel: name of its function.
        variant: digest of what it is compiled for: types, constants and known divisibilities of its arguments, options.
        target: such as ``sm_90``.
        operation: module of `kernels.triton_ops` that launches it.
        case: launches of that operation that it is compiled for.
        model: the first of the models whose shapes ask for it.
        product: it multiplies matrices.
        warps: warps of a program.
        registers: registers of a thread.
        spills: bytes of a thread's registers that went to memory.
        shared: bytes of shared memory of a program.
        mma: matrix instructions of the tensor cores, of the kind that a warp issues.
        wgmma: those of four warps together (Hopper).
    """

    kernel: str
    variant: str
    target: str
    operation: str
    case: str
    model: str
    product: bool
    warps: int
    registers: int
    spills: int
    shared: int
    mma: int
    wgmma: int


class _Target:
    """Stands in for Triton's driver: answers what is compiled for, and has no device."""

    def __init__(self, target: int) -> None:
        self.target = target

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.target, 32)

    def get_current_device(self) -> int:
        # Triton keeps what it compiled by device: one for each target.
        return self.target

    def get_current_stream(self, device: int) -> int:  # noqa: ARG002
        return 0


def compile_kernels(
    target: int, models: Sequence[str], operations: Sequence[str] = (), cases: str = ""
) -> list[KernelReport]:
    """Compile for one target.

    Args:
        target: compute capability, such as 90.
        models: names in `MODEL_SHAPES`.
        operations: modules of `kernels.triton_ops`; all if empty.
        cases: only cases whose name contains this.

    Returns:
        A report for each kernel, in the order of their launches.
    """
    from triton.runtime import driver

    driver.set_active(_Target(target))
    modules = dict(_operations())
    products = frozenset[str]().union(*(getattr(module, "PRODUCTS", ()) for module in modules.values()))
    reports: dict[str, KernelReport] = {}
    for model in models:
        for operation, module in modules.items():
            if (operations and operation not in operations) or not hasattr(module, "aot_cases"):
                continue
            for case, launches in module.aot_cases(MODEL_SHAPES[model]):
                if cases not in case:
                    continue
                with compiling(target) as state:
                    launches()
                for compiled in state.kernels:
                    if compiled.binary.hash not in reports:
                        reports[compiled.binary.hash] = KernelReport(
                            kernel=compiled.name,
                            variant=_variant(compiled),
                            target=f"sm_{target}",
                            operation=operation,
                            case=case,
                            model=model,
                            product=compiled.name in products,
                            warps=compiled.binary.metadata.num_warps,
                            **_measure(compiled.binary),
                        )
    return list(reports.values())


def faults(report: KernelReport) -> list[str]:
    """What is wrong with a kernel, in words."""
    found = []
    if report.spills:
        found.append(f"spills {report.spills} bytes of registers")
    limit = _SHARED_LIMITS.get(int(report.target.removeprefix("sm_")), 48 << 10)
    if report.shared > limit:
        found.append(f"asks for {report.shared} bytes of shared memory of {limit}")
    if report.product and not report.mma + report.wgmma:
        found.append("is a product without tensor-core instructions")
    return found


def _operations() -> Iterator[tuple[str, ModuleType]]:
    package = importlib.import_module("kernels.triton_ops")
    for found in pkgutil.iter_modules(package.__path__):
        yield found.name, importlib.import_module(f"{package.__name__}.{found.name}")


def _variant(compiled: Compiled) -> str:
    source = compiled.binary.src
    told = (source.signature, source.constants, source.attrs, compiled.options)
    text = "\n".join(str(sorted((str(name), str(value)) for name, value in part.items())) for part in told)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _measure(binary: Any) -> dict[str, int]:
    """Registers, spills, shared memory and matrix instructions of a compiled kernel."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    used = {name: int(value) for name, value in re.findall(r"\b(REG|STACK):(\d+)", usage)}
    ptx = binary.asm["ptx"]
    return {
        "registers": used["REG"],
        "spills": used["STACK"],
        "shared": binary.metadata.shared,
        "mma": len(re.findall(r"\bmma\.sync", ptx)),
        "wgmma": len(re.findall(r"\bwgmma\.mma_async", ptx)),
    }


def _table(reports: Sequence[KernelReport]) -> str:
    columns = ("kernel", "variant", "target", "case", "model", "warps", "registers", "spills", "shared", "mma", "wgmma")
    rows = [columns, *(tuple(str(getattr(report, column)) for column in columns) for report in reports)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def _target(name: str) -> int:
    if not re.fullmatch(r"sm_\d+", name):
        raise argparse.ArgumentTypeError(f"target {name!r} is not of the form sm_90")
    return int(name.removeprefix("sm_"))


def _comma_separated(each: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    return lambda text: [each(part) for part in text.split(",") if part]


def _model(name: str) -> str:
    if name not in MODEL_SHAPES:
        raise argparse.ArgumentTypeError(f"model {name!r} is not one of {', '.join(MODEL_SHAPES)}")
    return name


def main(command_line: Sequence[str] | None = None) -> int:
    """Run the command line, that of the process if None; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m kernels.aot", description="Compile the Triton kernels, without a GPU."
    )
    parser.add_argument("--targets", type=_comma_separated(_target), default=[80, 89, 90], help="sm_80,sm_89,sm_90")
    parser.add_argument("--models", type=_comma_separated(_model), default=list(MODEL_SHAPES), help="default: all")
    parser.add_argument("--operations", type=_comma_separated(str), default=[], help="default: all")
    parser.add_argument("--cases", default="", help="only cases whose name contains this")
    parser.add_argument("--cache", type=Path, help="Triton cache to fill; default: that of the user")
    parser.add_argument("--json", action="store_true", help="print one JSON object and no table")
    arguments = parser.parse_args(command_line)
    if os.environ.get("TRITON_INTERPRET"):
        parser.error("TRITON_INTERPRET is set: interpreted kernels are not compiled")
    if arguments.cache:
        os.environ["TRITON_CACHE_DIR"] = str(arguments.cache.resolve())
    import triton

    work = partial(compile_kernels, models=arguments.models, operations=arguments.operations, cases=arguments.cases)
    jobs = min(len(arguments.targets), len(os.sched_getaffinity(0)))
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        reports = [report for part in pool.map(work, arguments.targets) for report in part]
    if arguments.json:
        rows = [asdict(report) for report in reports]
        print(json.dumps({"triton": triton.__version__, "models": arguments.models, "kernels": rows}, indent=1))
    else:
        print(_table(reports))
    failed = [f"{r.kernel} ({r.target}, {r.case}, {r.model}): {fault}" for r in reports for fault in faults(r)]
    for line in failed:
        print(line, file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
