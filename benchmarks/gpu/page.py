"""The measured section of docs/gpu.md, made from the results."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.gpu.checks import summary
from benchmarks.gpu.results import Figure, Outcome, Results
from benchmarks.gpu.throughput import BATCHES, WARMUP

BEGIN, END = "<!-- measured: written by make gpu -->", "<!-- end of measured -->"


@dataclass(frozen=True)
class Published:
    """Throughput of training that others published."""

    training: str
    hardware: str
    images_per_s: str
    source: str


IMAGENET = 1_281_167
PUBLISHED = (
    Published(
        "LightningDiT-XL, flow matching",
        "8 H800",
        f"{64 * IMAGENET / (10 * 3600) / 8:.0f}",
        "arXiv 2501.01423: 64 epochs in about 10 hours",
    ),
    Published(
        "OpenDiT, DiT-XL/2", "H800, batch 128", "166–175", "repository hpcaitech/Open-Sora, docs/acceleration.md"
    ),
    Published(
        "fast-DiT, DiT-XL/2, gradient checkpointing",
        "A100, fp16, batch 128",
        f"{0.84 * 128:.1f}",
        "repository chuanyangjin/fast-DiT: 0.84 steps/s",
    ),
    Published(
        "TiM-B/4, JVP",
        "A100-40G, bf16, batch 256",
        f"{1.80 * 256:.0f}",
        "arXiv 2509.04394: 1.80 steps/s, 14.89 GiB",
    ),
    Published(
        "TiM-B/4, finite difference",
        "A100-40G, bf16, batch 256",
        f"{2.40 * 256:.0f}",
        "arXiv 2509.04394: 2.40 steps/s, 15.23 GiB",
    ),
    Published(
        "MeanFlow, CIFAR-10 U-Net, compiled",
        "8 H200, batch 1024",
        f"{1024 / 0.21 / 8:.0f}",
        "repository Gsunshine/py-meanflow: 0.21 s a step",
    ),
)
"""Images per second of one GPU, computed from what the source states."""


FIGURES = ("images/s", "batch", "peak memory, GiB", "% of the peak FLOP/s", f"first {WARMUP} steps, s")
"""Names of the figures of a throughput row, in order."""


def with_measured(page: str, results: Results) -> str:
    """Replace what stands between the two markers of a page; ValueError if it lacks them."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"docs/gpu.md: must contain the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{measured(results)}\n\n{END}{after}"


def measured(results: Results) -> str:
    """Make the section: machine, verdicts, throughput beside published figures, all figures."""
    timed = [outcome for outcome in results.outcomes if outcome.check.startswith(tuple(BATCHES))]
    checks = [outcome for outcome in results.outcomes if outcome not in timed]
    parts = [
        ", ".join(f"{name} {value}" for name, value in results.machine.items()) + ".",
        table(("check", "outcome"), [(outcome.check, summary(outcome)) for outcome in checks]),
        table(("training step", *FIGURES), [throughput_row(row) for row in timed]),
        "The peak is that of bf16 for the whole step, also where values of a finite difference are in fp32.",
        table(
            ("published", "hardware", "images/s of one GPU", "source"),
            [(row.training, row.hardware, row.images_per_s, row.source) for row in PUBLISHED],
        ),
        *(details(outcome) for outcome in checks if outcome.figures),
    ]
    return "\n\n".join(parts)


def throughput_row(outcome: Outcome) -> tuple[str, ...]:
    if not outcome.figures:
        return outcome.check, f"{outcome.verdict}: {outcome.reason}", *[""] * (len(FIGURES) - 1)
    return outcome.check, *(f"{figure.value:.4g}" for figure in outcome.figures)


def details(outcome: Outcome) -> str:
    """List all figures of a check with their limits and the origin of these."""
    rows = [(figure.name, f"{figure.value:.3g}", limit_of(figure)) for figure in outcome.figures]
    return f"{outcome.check} ({outcome.reason}):\n\n{table(('figure', 'value', 'at most'), rows)}"


def limit_of(figure: Figure) -> str:
    return "" if figure.limit is None else f"{figure.limit:.3g}"


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Make a Markdown table; a bar inside a cell is escaped."""
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
