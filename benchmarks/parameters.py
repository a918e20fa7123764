"""Count the parameters of each network, as the page docs/networks.md.

$ python benchmarks/parameters.py > docs/networks.md

Trained parameters only, on the data for which the networks were published: latents [4, 32, 32] with 1000 classes and
CIFAR-10 [3, 32, 32] with 10. Networks are built on the meta device, without memory.
"""

from __future__ import annotations

import torch

from soflow.config import parse
from soflow.networks.registry import DIT_SIZES, NETWORKS
from soflow.training.build import build_network

LATENTS = {"name": "latents", "image_size": 256}
CIFAR = {"name": "cifar10"}
PUBLISHED = {"DiT-B/2": 131, "DiT-B/4": 131, "DiT-M/2": 308, "DiT-L/2": 459, "DiT-XL/2": 676, "U-Net": 55}
"""Millions, from MeanFlow's table of configurations (arXiv 2505.13447), which SoFlow shares."""
PAGE = """# Networks

Trained parameters of every network of published size, counted by `benchmarks/parameters.py`. A DiT is conditioned on
two times, so it has one more time embedder than the original (arXiv 2212.09748). Its fixed position table is not
counted.

| network | width | depth | heads | parameters | published |
|---|---|---|---|---|---|
{rows}

DiT on latents [4, 32, 32] with 1000 classes, U-Net on images [3, 32, 32] with 10. XXS and XS sizes are for small
images: {small}.

## The SoFlow authors' checkpoints

`experiments/import_checkpoint.py` and `experiments/export_checkpoint.py` convert DiT and U-Net checkpoints with their
optimizer, and reading back gives the same bits. A key or shape that differs is named. The authors' CIFAR-10 U-Net is
EDM's with a second time (arXiv 2206.00364), without labels and with six augmentation parameters, so it needs
`dataset.conditional` = false and `dataset.augmentations` = upright. `tests/unit/soflow/interop/test_authors_layout.py`
contains it a second time, written from EDM's description; both compute the same to 1e-12 in float64.

A file that can be imported confirms the layers, the resampling filters and that the two time embeddings are
concatenated. Three properties show in neither names nor shapes and are assumed, so look at an imported checkpoint's
samples first:

- Attention interleaves its query, key and value channels, as EDM's does (`INTERLEAVED` in
  `soflow/interop/authors_layout.py`; in MeanFlow's U-Net, all query channels come first).
- Times are embedded in [0, 1], without a factor, as MeanFlow's are.
- The embedding of t comes before that of t − s, as MeanFlow's does.
"""


def count(network: str, dataset: dict, classes: int) -> int:
    """Count the trained parameters of a network."""
    config = parse({"dataset": dataset, "network": {"name": network}})
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_network(config, classes).parameters())


def page() -> str:
    """Build the page in Markdown."""
    rows = []
    for size, (width, depth, heads) in DIT_SIZES.items():
        for patch in (2, 4):
            name = f"DiT-{size}/{patch}"
            if "X" not in size.removesuffix("XL"):
                rows.append((name, width, depth, heads, count(name, LATENTS, 1000)))
    rows.append(("U-Net", NETWORKS["U-Net"].size["width"], "–", 1, count("U-Net", CIFAR, 10)))
    small = {name: count(name, {"name": "digits"}, 10) for name in ("DiT-XXS/4", "DiT-XS/4", "U-Net-XS")}
    return PAGE.format(
        rows="\n".join(_row(*row) for row in rows),
        small=", ".join(f"{name} has {number:,} on digits" for name, number in small.items()),
    )


def _row(name: str, width: int, depth: int | str, heads: int, number: int) -> str:
    published = f"{PUBLISHED[name]} M" if name in PUBLISHED else ""
    return f"| {name} | {width} | {depth} | {heads} | {number:,} | {published} |"


if __name__ == "__main__":
    print(page(), end="")
