"""Published FIDs, shown beside measured ones but never mixed with them.

FID of 50,000 samples with Inception features: SoFlow arXiv 2512.15657, MeanFlow arXiv 2505.13447.
"""

from __future__ import annotations

COLUMNS = ("data, network", "SoFlow, 1 NFE", "SoFlow, 2 NFE", "MeanFlow, 1 NFE")
ROWS = (
    ("ImageNet-256, DiT-B/4, no guidance, 80 epochs", "58.56", "58.22", "61.06"),
    ("ImageNet-256, DiT-B/4, guided, 80 epochs", "11.59", "8.22", "15.53"),
    ("ImageNet-256, DiT-B/2, guided, 240 epochs", "4.85", "4.24", "6.17"),
    ("ImageNet-256, DiT-M/2, guided, 240 epochs", "3.73", "3.42", "5.01"),
    ("ImageNet-256, DiT-L/2, guided, 240 epochs", "3.20", "2.90", "3.84"),
    ("ImageNet-256, DiT-XL/2, guided, 240 epochs", "2.96", "2.66", "3.43"),
    ("CIFAR-10, U-Net, unconditional", "2.86", "2.28", "2.92"),
)
NOTE = (
    "Published, not measured here: FID of 50,000 samples with Inception features. Not comparable with values measured "
    "by another protocol or on other data."
)
