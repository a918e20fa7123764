"""Train a classifier whose features are used for FID: of digits, Fashion-MNIST or your own images.

$ python experiments/train_feature_network.py images --root FOLDER
$ python experiments/train_feature_network.py digits-cnn

It is trained on the classes of its data set and tested on held-out images. `images` writes a file for
--evaluation.feature-network; the others, with seed 0, reproduce the weights in soflow/evaluation/weights/. FIDs are
comparable only for equal weights, whose hash every run logs.
"""

from __future__ import annotations

import json
import math
import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import ValidationError, model_validator

from orchestration.terminal.command_line import fail, read_command_line
from soflow.config import describe
from soflow.config_base import Count, InputPath, Section
from soflow.evaluation.registry import FEATURE_NETWORKS

if TYPE_CHECKING:
    from torch import Tensor

    from soflow.evaluation.feature_networks import Classifier


@dataclass(frozen=True)
class Recipe:
    """Training settings of a feature network."""

    steps: int
    batch_size: int
    learning_rate: float = 4e-3
    """Peak of the one-cycle schedule."""
    weight_decay: float = 0.3
    pixel_noise: float = 8.0
    """Standard deviation, in gray levels, of noise that keeps the features smooth."""


RECIPES = {
    "digits-cnn": Recipe(steps=1000, batch_size=128),
    "fashion-cnn": Recipe(steps=3600, batch_size=256),
    "images": Recipe(steps=2000, batch_size=128),
}


@dataclass(frozen=True)
class Split:
    """uint8 images [N, C, H, W] and labels [N] for training and test."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    facts: dict[str, str]
    """Description of the split and SHA-256 digests of its data."""

    @property
    def num_classes(self) -> int:
        return int(self.train_labels.max()) + 1


def read_split(name: str, root: Path | None = None, image_size: int | None = None) -> Split:
    """Read the fixed split of a feature network's data set.

    Args:
        root: folder of Fashion-MNIST's files, or of your images.
        image_size: side of your images; default: their own if all have the same.

    Raises:
        DataError: if the files are missing or unusable, or a class has fewer than 2 images.
        ValidationError: if the size is missing.
    """
    import numpy as np
    import torch

    from soflow.data import fashion_mnist, open_source
    from soflow.data.base import DataError
    from soflow.data.config import DatasetConfig

    dataset = FEATURE_NETWORKS[name].dataset if name in FEATURE_NETWORKS else "image_folder"
    config = DatasetConfig.model_validate({"name": dataset, "root": root, "image_size": image_size})
    if name == "fashion-cnn":
        train, test = (fashion_mnist.open_split(config.root, part, config.download) for part in ("train", "t10k"))
        arrays = (*train.batch(np.arange(len(train))), *test.batch(np.arange(len(test))))
        facts = {"split": "train and t10k files", "data_sha256": train.fingerprint, "test_sha256": test.fingerprint}
    else:
        from sklearn.model_selection import train_test_split

        source = open_source(config)
        if source.num_classes < 2 or np.bincount(source.labels).min() < 2:
            raise DataError(f"root = {root}: needs two classes or more, in a sub-folder each, of two images or more")
        images, labels = source.batch(np.arange(len(source)))
        tested = max(math.ceil(0.2 * len(source)), source.num_classes)  # stratification needs one of each class
        arrays = train_test_split(images, labels, test_size=tested, stratify=labels, random_state=0)
        arrays = (arrays[0], arrays[2], arrays[1], arrays[3])
        share = round(100 * tested / len(source))
        split = f"stratified {100 - share}/{share} by train_test_split, seed 0"
        facts = {"split": split, "data_sha256": source.fingerprint}
    return Split(*(torch.tensor(array) for array in arrays), facts)


def train(name: str, split: Split, seed: int) -> Classifier:
    """Train a network and return it in evaluation mode; equal seeds give equal weights on equal hardware."""
    import torch
    from torch.nn import functional as F

    from soflow.evaluation.feature_networks import Classifier, widths_for

    recipe, shape = RECIPES[name], tuple(split.train_images.shape[1:])
    torch.set_num_threads(1)  # the number of threads changes the order of sums, and with it the weights
    torch.manual_seed(seed)
    network = Classifier(shape, widths_for(shape), split.num_classes).train()
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, total_steps=recipe.steps)
    begin, left = time.perf_counter(), torch.empty(0, dtype=torch.long)
    for step in range(1, recipe.steps + 1):
        if len(left) < recipe.batch_size:
            left = torch.randperm(len(split.train_labels))
        batch, left = left[: recipe.batch_size], left[recipe.batch_size :]
        images = shift(split.train_images[batch].float())
        images += recipe.pixel_noise * torch.randn(images.shape)
        loss = F.cross_entropy(network(images)[1], split.train_labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % (recipe.steps // 10) == 0:
            print(f"step {step}/{recipe.steps}  loss {loss:.4f}  {time.perf_counter() - begin:.0f} s", flush=True)
    return network.eval()


def shift(images: Tensor) -> Tensor:
    """Shift half of the images [B, C, H, W] by at most one pixel in each direction, padded with black."""
    import torch
    from torch.nn import functional as F

    side = images.shape[-1]
    padded = F.pad(images, (1, 1, 1, 1))
    corners = torch.where(torch.rand(len(images), 1) < 0.5, torch.randint(0, 3, (len(images), 2)), 1)
    rows, columns = (corners[:, [axis]] + torch.arange(side) for axis in (0, 1))
    sample = torch.arange(len(images))[:, None, None]
    return padded.movedim(1, -1)[sample, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


def accuracy(network: Classifier, images: Tensor, labels: Tensor) -> float:
    """Compute the accuracy on images [N, C, H, W] with labels [N]."""
    import torch

    with torch.no_grad():
        predicted = torch.cat([network(batch)[1].argmax(1) for batch in images.split(500)])
    return (predicted == labels).double().mean().item()


class FeatureNetworkOptions(Section):
    name: Literal["images", "digits-cnn", "fashion-cnn"]
    """images = for your images in --root; digits-cnn and fashion-cnn = as included in the package. One core takes about
    10 seconds for digits-cnn, 1 minute for images of 16 x 16 pixels, 3 minutes for fashion-cnn."""
    root: InputPath | None = None
    """Folder of your images, with one sub-folder per class, or of Fashion-MNIST's files. Default: Debian's package."""
    image_size: Count | None = None
    """Side of your images in pixels. Default: their own, if all have the same size."""
    seed: int = 0
    """Seed of weights, data order and augmentation."""
    out: Path = Path("results/feature_networks")
    """Folder for NAME.safetensors; soflow/evaluation/weights replaces the weights used for FID."""

    @model_validator(mode="after")
    def _images_have_a_folder(self) -> FeatureNetworkOptions:
        if self.name == "images" and self.root is None:
            raise ValueError("root = None: must be the folder of your images, with one sub-folder per class")
        return self


def main() -> int:
    options = read_command_line(FeatureNetworkOptions, __doc__, positional="name")
    import safetensors.torch

    from soflow.data.base import DataError
    from soflow.data.config import DatasetConfig
    from soflow.files import write_atomic

    try:
        split = read_split(options.name, options.root, options.image_size)
    except ValidationError as error:
        fail(describe(error, DatasetConfig))
    except DataError as error:
        fail(error)
    print(f"{options.name}: {len(split.train_labels)} training images, {len(split.test_labels)} test images")
    network = train(options.name, split, options.seed)
    score = accuracy(network, split.test_images, split.test_labels)
    facts = {"test_accuracy": score, "seed": options.seed, "steps": RECIPES[options.name].steps, **split.facts}
    if options.name == "images":  # the others are known without the file, and their hashes must not change
        facts |= {"image_shape": tuple(split.train_images.shape[1:]), "num_classes": split.num_classes}
    path = options.out / f"{options.name}.safetensors"
    # A single metadata entry: safetensors writes several in random order, and the file's hash must be reproducible.
    write_atomic(path, safetensors.torch.save(network.state_dict(), {"made": json.dumps(facts)}))
    print(f"test accuracy {score:.4f}; weights written to {path}")
    if options.name == "images":
        flags = ["--dataset", "image_folder", "--dataset.root", options.root, "--evaluation.feature-network", path]
        flags += ["--dataset.image-size", options.image_size] if options.image_size else []
        print(f"use it with: {shlex.join(map(str, flags))}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
