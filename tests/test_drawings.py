"""Images added to the training images: that they are framed as MNIST's, show what their label says, and train as they
should."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from modeling_vit_mnist.checkpoints.folder import load_checkpoint
from modeling_vit_mnist.cli.errors import UsageError
from modeling_vit_mnist.data import drawings
from modeling_vit_mnist.data.augmentation import NO_DIGIT, AugmentationArguments, AugmentedDataset
from modeling_vit_mnist.data.drawings import (
    DIGITS,
    FONTS,
    OTHERS,
    add_drawings,
    check_drawable,
    draw_digit,
    draw_glyph,
    draw_outlier,
    load_glyphs,
    photograph,
)
from modeling_vit_mnist.data.folders import load_from_folder
from modeling_vit_mnist.deskewing_vit_mnist import deskew
from modeling_vit_mnist.inference.predict import predict
from modeling_vit_mnist.training.train import train

from .conftest import ROOT, arguments, weights

ARGUMENTS = AugmentationArguments(num_photographs=30, num_drawn_digits=20, num_font_digits=25, num_outliers=40)


@pytest.fixture(scope="module")
def drawn(sample):
    return add_drawings(sample["train"].take(500), ARGUMENTS, seed=0)


@pytest.fixture(scope="module")
def small():
    return load_checkpoint(ROOT / "vit-mnist-small")


def accuracy(small, images, labels) -> float:
    model, processor = small
    frames = torch.from_numpy(np.stack([deskew(image) for image in images]))
    return float((predict(model, processor, frames).argmax(1).numpy() == labels).mean())


def test_the_images_of_the_dataset_come_first_unchanged(sample, drawn):
    assert len(drawn) == 615
    assert torch.equal(drawn.images[:500], sample["train"].images[:500])
    assert torch.equal(drawn.labels[:500], sample["train"].labels[:500])
    assert drawn.labels[530:550].tolist() == [*range(10)] * 2
    assert (drawn.labels[575:] == NO_DIGIT).all() and (drawn.labels[:575] != NO_DIGIT).all()


def test_drawings_depend_on_the_seed_alone(sample, drawn):
    again, other = (add_drawings(sample["train"].take(500), ARGUMENTS, seed) for seed in (0, 1))
    assert torch.equal(drawn.images, again.images)
    assert not torch.equal(drawn.images[500:], other.images[500:])


def test_drawings_have_mnists_frame(drawn):
    images = drawn.images[500:].numpy()
    blank = ~images.any((1, 2))
    assert not blank[:75].any() and blank.sum() < 5  # a few of the outliers
    for image in images[~blank]:
        rows, columns = np.flatnonzero(image.any(1)), np.flatnonzero(image.any(0))
        assert image.max() >= 254
        assert max(np.ptp(rows), np.ptp(columns)) + 1 in (19, 20)


@pytest.mark.parametrize("digit", DIGITS)
def test_each_drawn_digit_is_read_as_the_digit_it_is(small, digit):
    generator = np.random.default_rng(0)
    assert accuracy(small, [draw_digit(digit, generator) for _ in range(40)], int(digit)) > 0.6


def test_digits_of_fonts_are_read_as_the_digits_they_are(small, drawn):
    images, labels = drawn.images[550:575].numpy(), drawn.labels[550:575].numpy()
    assert len(set(labels)) > 5 and accuracy(small, images, labels) > 0.9


def test_the_digits_of_a_font_have_the_labels_of_the_datasets_classes():
    glyphs = load_from_folder(FONTS, streaming=False)["train"]
    threes = [np.asarray(image) for image, label in zip(glyphs["image"], glyphs["label"], strict=True) if label == 3]
    chosen = load_glyphs(["7", "3"])
    assert len(chosen) == 2 * len(threes)
    assert np.array_equal([np.asarray(image) > 0 for image, label in chosen if label == 1], threes)


def test_each_draw_of_a_font_digit_is_another_shape():
    generator = np.random.default_rng(0)
    glyph, _ = load_glyphs(["5"])[0]
    images = {draw_glyph(glyph, generator).tobytes() for _ in range(20)}
    assert len(images) == 20


def test_the_fonts_are_those_that_their_card_lists():
    card = (FONTS / "README.md").read_text("utf-8")
    listed = re.findall(r"^\| ([\w-]+) \| (train|test) \| (OFL-1.1|Apache-2.0) \| \S", card, flags=re.MULTILINE)
    assert len({name for name, *_ in listed}) == len(listed) == 216
    for split, count in {"train": 154, "test": 62}.items():
        fonts = [name for name, its, _ in listed if its == split]
        digits = load_from_folder(FONTS, streaming=False)[split]
        assert len(fonts) == count and f"{count} fonts" in card
        assert digits["font"][:] == [name for name in fonts for _ in range(10)]
        assert digits["label"][:] == [*range(10)] * count


def test_no_test_font_has_the_digits_of_a_training_font():
    splits = load_from_folder(FONTS, streaming=False)
    train, test = (
        np.stack([np.asarray(image) for image in splits[name]["image"]]).reshape(-1, 10, 64 * 64)
        for name in ("train", "test")
    )
    for font in test:
        differences = (font != train).sum(2) / font.sum(1)  # of each digit, to that of each training font
        assert np.median(differences, axis=1).min() > 0.2


def test_photographs_keep_their_digit(small, sample):
    generator = np.random.default_rng(0)
    digits = sample["train"].images[:100].numpy()
    photographs = [photograph(digit, generator) for digit in digits]
    assert accuracy(small, photographs, sample["train"].labels[:100].numpy()) > 0.9
    assert sum(np.array_equal(*pair) for pair in zip(photographs, digits, strict=True)) < 5


@pytest.mark.parametrize("kind", range(4))
def test_each_kind_of_outlier_is_drawn(sample, kind, monkeypatch):
    class Fixed:
        """A generator whose first choice is `kind`."""

        def __init__(self):
            self.generator, self.is_first = np.random.default_rng(0), True

        def integers(self, *args, **kwargs):
            first, self.is_first = self.is_first, False
            return kind if first else self.generator.integers(*args, **kwargs)

        def __getattr__(self, name):
            return getattr(self.generator, name)

    images = sample["train"].images[:50].numpy()
    outliers = [draw_outlier(images, Fixed()) for _ in range(2)]
    assert np.array_equal(*outliers) and outliers[0].max() >= 254


def test_a_hundredth_of_the_outliers_is_blank(sample):
    images, generator = sample["train"].images[:50].numpy(), np.random.default_rng(0)
    blank = [not draw_outlier(images, generator).any() for _ in range(600)]
    assert 1 <= sum(blank) <= 15


def test_all_strokes_can_be_drawn():
    for strokes in [*OTHERS, *(variant for variants in DIGITS.values() for variant in variants)]:
        picture = drawings.draw_strokes(strokes, np.random.default_rng(0))
        assert 100 < (picture > 127).sum() < picture.size / 2


def test_outliers_change_their_class_in_every_epoch_and_others_never(drawn):
    augmented = AugmentedDataset(drawn, ARGUMENTS, seed=0, num_epochs=50)
    labels = []
    for epoch in range(50):
        augmented.set_epoch(epoch)
        labels.append(augmented.__getitems__(range(615))["labels"])
    stacked = torch.stack(labels)
    assert (stacked[:, :575] == drawn.labels[:575]).all()
    counts = torch.bincount(stacked[:, 575:].flatten(), minlength=10)
    assert len(counts) == 10 and (counts > 150).all() and (counts < 250).all()  # 200 each of 2,000
    augmented.set_epoch(0)
    assert torch.equal(augmented.__getitems__([580, 614])["labels"], labels[0][[580, 614]])


@pytest.mark.parametrize(
    "changes, message",
    [({"names": ["a", "b"]}, "classes a, b"), ({"images": torch.zeros(5, 32, 32, dtype=torch.uint8)}, "32x32")],
)
def test_other_images_than_digits_are_refused(sample, changes, message):
    with pytest.raises(UsageError, match=message):
        check_drawable(replace(sample["train"], **changes))


def test_a_stream_is_refused(tmp_path):
    with pytest.raises(UsageError, match="--streaming"):
        train(*arguments(tmp_path / "run", "--num_outliers=5", "--streaming"))
    assert not (tmp_path / "run").exists()


def test_a_run_with_drawings_records_them_and_ends_with_other_weights(tmp_path, capsys):
    quick = ["--num_train_epochs=1"]
    train(*arguments(tmp_path / "plain", *quick))
    results = train(*arguments(tmp_path / "drawn", *quick, "--num_outliers=60", "--num_font_digits=40"))
    assert results["train_samples"] == 500
    assert "0 drawn digits, 40 digits of fonts and 60 outliers" in capsys.readouterr().out
    run = json.loads((tmp_path / "drawn" / "run.json").read_text())
    assert run["augmentation"]["num_outliers"] == 60 and run["data"]["train"] == 400
    card = " ".join((tmp_path / "drawn" / "README.md").read_text().split())
    assert "60 are drawings of no digit" in card and "40 are digits of 154 handwriting fonts" in card
    plain, with_drawings = weights(tmp_path / "plain"), weights(tmp_path / "drawn")
    assert any(not torch.equal(plain[name], with_drawings[name]) for name in plain)


@pytest.mark.parametrize("flag", ["--num_outliers=-1", "--num_photographs=-5"])
def test_negative_counts_are_refused(tmp_path, flag):
    with pytest.raises(UsageError, match="zero or positive"):
        arguments(tmp_path / "run", flag)
