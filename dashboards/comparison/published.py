"""Published FIDs, shown beside measured ones but never mixed with them.

FID of 50,000 samples with Inception features: SoFlow arXiv 2512.15657, MeanFlow arXiv 2505.13447, ESC
arXiv 2512.11831.
"""

from __future__ import annotations

FIDS: dict[str, dict[int, float]] = {
    "soflow-imagenet256-b4-no-guidance": {1: 58.56, 2: 58.22},
    "soflow-imagenet256-b4": {1: 11.59, 2: 8.22},
    "soflow-imagenet256-b2": {1: 4.85, 2: 4.24},
    "soflow-imagenet256-m2": {1: 3.73, 2: 3.42},
    "soflow-imagenet256-l2": {1: 3.20, 2: 2.90},
    "soflow-imagenet256-xl2": {1: 2.96, 2: 2.66},
    "soflow-cifar10": {1: 2.86, 2: 2.28},
    "meanflow-imagenet256-b4-no-guidance": {1: 61.06},
    "meanflow-imagenet256-b4": {1: 15.53},
    "meanflow-imagenet256-b2": {1: 6.17},
    "meanflow-imagenet256-m2": {1: 5.01},
    "meanflow-imagenet256-l2": {1: 3.84},
    "meanflow-imagenet256-xl2": {1: 3.43},
    "meanflow-cifar10-v0": {1: 2.92},
    "esc-imagenet256-b2": {1: 5.78},
    "esc-imagenet256-xl2": {1: 2.85},
}
"""FID by number of function evaluations (NFE), by the preset of the training run (experiments/presets)."""
COLUMNS = ("data, network", "SoFlow, 1 NFE", "SoFlow, 2 NFE", "MeanFlow, 1 NFE")
_RUNS = (
    ("ImageNet-256, DiT-B/4, no guidance, 80 epochs", "imagenet256-b4-no-guidance", ""),
    ("ImageNet-256, DiT-B/4, guided, 80 epochs", "imagenet256-b4", ""),
    ("ImageNet-256, DiT-B/2, guided, 240 epochs", "imagenet256-b2", ""),
    ("ImageNet-256, DiT-M/2, guided, 240 epochs", "imagenet256-m2", ""),
    ("ImageNet-256, DiT-L/2, guided, 240 epochs", "imagenet256-l2", ""),
    ("ImageNet-256, DiT-XL/2, guided, 240 epochs", "imagenet256-xl2", ""),
    ("CIFAR-10, U-Net, unconditional", "cifar10", "-v0"),
)
ROWS = tuple(
    (label, *(f"{FIDS[f'soflow-{run}'][nfe]:.2f}" for nfe in (1, 2)), f"{FIDS[f'meanflow-{run}{version}'][1]:.2f}")
    for label, run, version in _RUNS
)
NOTE = (
    "Published, not measured here: FID of 50,000 samples with Inception features. Not comparable with values measured "
    "by another protocol or on other data."
)
