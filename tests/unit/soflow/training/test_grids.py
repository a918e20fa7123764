"""Grids of real images: the same classes in the same columns as the samples, from the data alone."""

import numpy as np
import pytest
import torch
from helpers import CPU

from soflow.codecs.pixels import Pixels
from soflow.data.in_memory import InMemorySource
from soflow.training.grids import BACKGROUND, GRID_COLUMNS, real_grid


def numbered(labels: list[int], num_classes: int) -> InMemorySource:
    """A source whose image i has the gray value i."""
    values = np.arange(len(labels), dtype=np.uint8)
    return InMemorySource(values.repeat(4).reshape(-1, 1, 2, 2), np.array(labels), num_classes)


def gray_values(source: InMemorySource, rows: int) -> torch.Tensor:
    return real_grid(source, Pixels(), CPU, rows).reshape(rows, GRID_COLUMNS, -1)[..., 0]


def test_every_column_shows_the_first_images_of_its_class():
    source = numbered(list(range(9, -1, -1)) * 3, num_classes=10)
    assert gray_values(source, 2).tolist() == [list(range(9, -1, -1)), list(range(19, 9, -1))]


def test_few_classes_share_the_columns_and_show_no_image_twice_before_all_were_shown():
    assert gray_values(numbered([0] * 30, num_classes=1), 2).flatten().tolist() == list(range(20))
    assert gray_values(numbered([0, 1, 1], num_classes=2), 1).tolist() == [[0, 1, 0, 2, 0, 1, 0, 2, 0, 1]]


def test_a_class_without_images_stays_gray_and_the_data_unchanged():
    source = numbered([0, 0, 2], num_classes=3)
    before = source.images.copy()
    assert gray_values(source, 1).tolist() == [[0, BACKGROUND, 2, 1, BACKGROUND, 2, 0, BACKGROUND, 2, 1]]
    assert np.array_equal(source.images, before)


@pytest.mark.parametrize("rows", [1, 8])
def test_stored_samples_are_shown_as_the_codec_decodes_them(rows):
    class Inverted(Pixels):
        def images(self, stored):
            return 255 - stored

    source = numbered(list(range(10)), num_classes=10)
    shown, plain = (real_grid(source, codec, CPU, rows) for codec in (Inverted(), Pixels()))
    assert torch.equal(shown, 255 - plain)
