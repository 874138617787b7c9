"""Datasets of every format, the offline default, the splits, and one-line errors for unusable datasets."""

import errno
import gzip
import hashlib
import io
import re
import shutil
import struct
import zlib

import datasets
import huggingface_hub
import numpy as np
import PIL.Image
import pytest
import torch

from modeling_vit_mnist import VitMnistImageProcessor
from modeling_vit_mnist.cli.errors import UsageError
from modeling_vit_mnist.data import images as images_module
from modeling_vit_mnist.data import splits as splits_module
from modeling_vit_mnist.data.arguments import DATASET_VARIABLE, DataArguments
from modeling_vit_mnist.data.folders import list_files
from modeling_vit_mnist.data.sources import load_raw
from modeling_vit_mnist.data.splits import fingerprint, load_images, stream_images

from .conftest import SAMPLE

PROCESSOR = VitMnistImageProcessor()


def load(folder=None, splits=("train", "validation", "test"), **options):
    return load_images(DataArguments(dataset_name=folder and str(folder), **options), PROCESSOR, splits)


def both_ways(folder, splits=("train", "validation", "test"), **options):
    """The splits loaded into memory, and streamed and then taken into memory."""
    yield load(folder, splits, **options)
    streams = stream_images(DataArguments(dataset_name=str(folder), streaming=True, **options), PROCESSOR, splits)
    yield {name: split if name == "validation" else split.take() for name, split in streams.items()}


def digit(number) -> PIL.Image.Image:
    """An image of its own for each number."""
    return PIL.Image.fromarray(np.random.default_rng(number).integers(0, 256, (28, 28), dtype=np.uint8))


def labeled(labels, feature, start=0) -> datasets.Dataset:
    """Images `start`, `start + 1`, ... with these labels."""
    images = [digit(start + number) for number in range(len(labels))]
    features = datasets.Features({"image": datasets.Image(), "label": feature})
    return datasets.Dataset.from_dict({"image": images, "label": list(labels)}, features)


@pytest.fixture(scope="module")
def few(sample):
    """Forty training and twenty test digits, balanced, as arrays."""
    pick = {name: torch.cat([(sample[name].labels == c).nonzero()[:n, 0] for c in range(10)]) for name, n in
            (("train", 4), ("test", 2))}  # fmt: skip
    return {
        name: (sample[name].images[index].numpy(), sample[name].labels[index].numpy()) for name, index in pick.items()
    }


def as_dataset(few, labels=None, **columns) -> datasets.DatasetDict:
    labels = labels or datasets.ClassLabel(names=[str(i) for i in range(10)])
    splits = {}
    for name, (images, classes) in few.items():
        table = {"image": [PIL.Image.fromarray(image) for image in images], "label": classes}
        table = {columns.get(column, column): values for column, values in table.items()}
        features = dict(zip(table, (datasets.Image(), labels), strict=True))
        splits[name] = datasets.Dataset.from_dict(table, datasets.Features(features))
    return datasets.DatasetDict(splits)


def write_idx(folder, few, suffix="", dot=False):
    for split, prefix in (("train", "train"), ("test", "t10k")):
        for array, kind in zip(few[split], ("images-idx3", "labels-idx1"), strict=True):
            content = (
                struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype("u1").tobytes()
            )
            name = f"{prefix}-{kind.replace('-', '.') if dot else kind}-ubyte{suffix}"
            (folder / name).write_bytes(gzip.compress(content) if suffix else content)


def write_imagefolder(folder, few):
    for split, (images, labels) in few.items():
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = folder / split / str(label) / f"{index:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray(image).save(path)


def write_parquet(folder, few):
    (folder / "data").mkdir()
    for split, dataset in as_dataset(few).items():
        dataset.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")


FORMATS = {
    "parquet": write_parquet,
    "imagefolder": write_imagefolder,
    "saved": lambda folder, few: as_dataset(few).save_to_disk(str(folder)),
    "saved with plain integers": lambda folder, few: as_dataset(few, datasets.Value("int32")).save_to_disk(
        str(folder)
    ),
    "idx": write_idx,
    "idx gzipped": lambda folder, few: write_idx(folder, few, ".gz"),
    "idx with dots": lambda folder, few: write_idx(folder, few, dot=True),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_of_a_dataset(name, few, tmp_path):
    FORMATS[name](tmp_path, few)
    digits = load(tmp_path, validation_size=10)
    images, labels = few["test"]
    assert np.array_equal(digits["test"].images.numpy(), images)
    assert np.array_equal(digits["test"].labels.numpy(), labels)
    assert digits["test"].names == [str(i) for i in range(10)]
    assert digits["validation"].labels.bincount().tolist() == [1] * 10
    assert digits["train"].labels.bincount().tolist() == [3] * 10


def test_batches_equal_the_processor_output(sample):
    batch = sample["train"].__getitems__([5, 0, 17])
    images = [PIL.Image.fromarray(sample["train"].images[i].numpy()) for i in (5, 0, 17)]
    assert torch.equal(batch["pixel_values"], PROCESSOR(images, return_tensors="pt").pixel_values)
    assert torch.equal(batch["labels"], sample["train"].labels[[5, 0, 17]])
    assert sample["train"][5]["pixel_values"].shape == (1, 28, 28)


def test_images_of_other_sizes_and_modes_go_through_the_processor(few, tmp_path):
    write_imagefolder(tmp_path, few)
    odd = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 40, 4), dtype=np.uint8))
    odd.save(tmp_path / "test" / "0" / "000.png")
    digits = load(tmp_path, ["test"])["test"]
    expected = PROCESSOR(odd, return_tensors="pt").pixel_values
    assert torch.equal(digits.__getitems__([0])["pixel_values"], expected)


def test_float_images_become_bytes(few, tmp_path):
    write_imagefolder(tmp_path, few)
    (tmp_path / "test" / "0" / "000.png").unlink()
    PIL.Image.fromarray(few["test"][0][0] / np.float32(255)).save(tmp_path / "test" / "0" / "000.tiff")
    args = DataArguments(dataset_name=str(tmp_path), streaming=True)
    for dataset in (load(tmp_path, ["test"])["test"], stream_images(args, PROCESSOR, ["test"])["test"].take()):
        assert dataset.images.dtype == torch.uint8
        assert np.array_equal(dataset.images.numpy(), few["test"][0])


def test_validation_split_is_stratified_seeded_and_disjoint_from_train(sample):
    everything = load(SAMPLE, validation_size=0.25)
    again = load(SAMPLE, validation_size=1000)
    other = load(SAMPLE, validation_size=1000, split_seed=1)
    assert everything["validation"].labels.bincount().tolist() == [100] * 10
    assert torch.equal(everything["validation"].images, again["validation"].images)
    assert not torch.equal(everything["validation"].images, other["validation"].images)
    rest = {image.numpy().tobytes() for image in everything["train"].images}
    assert not rest & {image.numpy().tobytes() for image in everything["validation"].images}
    assert len(sample["validation"]) == round(4000 / 12)


def test_a_validation_split_of_its_own_is_used(few, tmp_path):
    raw = as_dataset(few)
    raw["validation"] = raw["test"].select(range(7))
    raw.save_to_disk(str(tmp_path))
    digits = load(tmp_path)
    assert [len(digits[name]) for name in ("train", "validation", "test")] == [40, 7, 20]


def test_linked_folders_are_read_once(tmp_path):
    """Also two that hold each other. A class may be linked in several splits."""
    for name in ("train/a", "train/b", "more/c"):
        (tmp_path / name).mkdir(parents=True)
        for number in range(3):
            digit(number).save(tmp_path / name / f"{number}.png")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "a").symlink_to(tmp_path / "train" / "a")
    (tmp_path / "test" / "c").symlink_to(tmp_path / "more" / "c")
    (tmp_path / "more" / "c" / "back").symlink_to(tmp_path / "test")
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "test"):
        (folder / split).symlink_to(tmp_path / split)
    names = [file.as_posix() for file in list_files(folder)]
    assert names == [
        f"{place}/{number}.png" for place in ("test/a", "test/c", "train/a", "train/b") for number in range(3)
    ]


def test_a_size_of_a_validation_split_that_exists_is_named(few, tmp_path, caplog):
    raw = as_dataset(few)
    raw["validation"] = raw["test"].select(range(7))
    raw.save_to_disk(str(tmp_path))
    load(tmp_path, validation_size=0.5)
    assert "has a validation split: --validation_size has no effect" in caplog.text


@pytest.mark.parametrize("shared", [0, 3])
def test_images_of_train_in_other_splits_are_counted(shared, tmp_path, caplog):
    labels, feature = [0, 1] * 10, datasets.ClassLabel(names=["a", "b"])
    train, test = labeled(labels, feature), labeled(labels, feature, start=20 - shared)
    datasets.DatasetDict(train=train, test=test).save_to_disk(str(tmp_path))
    load(tmp_path)
    assert (f"{shared} images of the test split are in the train split, too." in caplog.text) == bool(shared)
    assert "validation split are in" not in caplog.text


def test_without_a_test_split_a_sixth_of_train_is_held_out(few, tmp_path, caplog):
    datasets.concatenate_datasets(list(as_dataset(few).values())).save_to_disk(str(tmp_path))
    digits, _ = both_ways(tmp_path, validation_size=10)
    assert [len(digits[name]) for name in ("train", "validation", "test")] == [40, 10, 10]
    assert digits["test"].labels.bincount().tolist() == [1] * 10
    assert caplog.text.count("has no test split: holding out a sixth of its train split") == 2


@pytest.mark.parametrize("held", [("train",), ("train", "test"), ("train", "validation")])
def test_a_split_does_not_depend_on_which_others_are_loaded(held, tmp_path):
    part = datasets.Value("int64")
    datasets.DatasetDict(
        {name: labeled([*range(4)] * 12, part, 100 * start) for start, name in enumerate(held)}
    ).save_to_disk(tmp_path)
    for way, together in enumerate(both_ways(tmp_path)):
        for name, split in together.items():
            alone = list(both_ways(tmp_path, [name]))[way][name]
            assert torch.equal(alone.images, split.images) and torch.equal(alone.labels, split.labels)


def test_limits():
    digits = load(SAMPLE, max_train_samples=100, max_eval_samples=7)
    assert [len(digits[name]) for name in ("train", "validation", "test")] == [100, 7, 7]


def test_text_labels_have_the_same_numbers_in_all_splits(few, tmp_path):
    """In named columns, and with fewer classes in the test split."""
    parts = {"train": few["train"], "test": tuple(array[10:] for array in few["test"])}
    named = {name: (images, [f"digit {label}" for label in labels]) for name, (images, labels) in parts.items()}
    as_dataset(named, datasets.Value("string"), image="scan", label="what").save_to_disk(str(tmp_path))
    options = {"dataset_name": str(tmp_path), "label_column_name": "what", "validation_size": 10}
    for splits in (["test"], ["train", "test"]):
        digits = load_images(DataArguments(**options), PROCESSOR, splits)["test"]
        streamed = stream_images(DataArguments(**options, streaming=True), PROCESSOR, splits)["test"].take()
        for dataset in (digits, streamed):
            assert dataset.names == [f"digit {label}" for label in range(10)]
            assert np.array_equal(dataset.labels.numpy(), parts["test"][1])


ANIMALS = {"train": ["cat", "dog", "eel"] * 8, "validation": ["eel", "dog"], "test": ["dog", "eel", "dog", "eel"]}


def write_animals(folder, layout):
    """`ANIMALS` with one list of classes per split, or with text."""
    parts = {}
    for start, (split, labels) in enumerate(ANIMALS.items()):
        own = datasets.ClassLabel(names=sorted(set(labels), reverse=split == "validation"))
        kind = datasets.Value("string") if layout == "text" or (layout, split) == ("mixed", "test") else own
        numbers = labels if kind is not own else own.str2int(labels)
        parts[split] = labeled(numbers, kind, 100 * start)
    if layout == "parquet":
        for split, part in parts.items():
            part.to_parquet(folder / f"{split}.parquet")
    elif layout == "saved per split":
        for split, part in parts.items():
            part.save_to_disk(folder / split)
    elif layout == "class folders":
        for start, (split, labels) in enumerate(ANIMALS.items()):
            for number, label in enumerate(labels):
                (folder / split / label).mkdir(parents=True, exist_ok=True)
                digit(100 * start + number).save(folder / split / label / f"{number:02}.png")
    else:
        datasets.DatasetDict(parts).save_to_disk(folder)


@pytest.mark.parametrize("layout", ["saved", "saved per split", "parquet", "mixed", "text", "class folders"])
def test_a_class_has_one_number_in_all_splits(layout, tmp_path):
    write_animals(tmp_path, layout)
    truth = {
        np.asarray(digit(100 * start + number)).tobytes(): label
        for start, labels in enumerate(ANIMALS.values())
        for number, label in enumerate(labels)
    }
    for splits in both_ways(tmp_path):
        assert [len(split) for split in splits.values()] == [24, 2, 4]
        for split in splits.values():
            assert split.names == ["cat", "dog", "eel"]
            read = [split.names[label] for label in split.labels.tolist()]
            assert read == [truth[image.numpy().tobytes()] for image in split.images]
    for splits in both_ways(tmp_path, ["test"]):
        assert splits["test"].names == ["cat", "dog", "eel"] and set(splits["test"].labels.tolist()) == {1, 2}


def test_a_class_without_training_images_is_warned_of(tmp_path, caplog):
    kinds = [datasets.ClassLabel(names=names) for names in (["dog", "eel"], ["ant", "dog", "eel"])]
    parts = {"train": labeled([0, 1] * 12, kinds[0]), "test": labeled([0, 1, 2], kinds[1], 100)}
    datasets.DatasetDict(parts).save_to_disk(tmp_path)
    for splits in both_ways(tmp_path):
        assert splits["test"].names == ["dog", "eel", "ant"] and splits["test"].labels.tolist() == [2, 0, 1]
    assert caplog.text.count("The classes ant of the test split have no training images") == 2


def test_numbers_stored_as_text_are_sorted_as_numbers(tmp_path):
    labels = [str(number) for number in range(12)]
    text = datasets.Value("string")
    parts = {"train": labeled(labels * 2, text), "test": labeled(["10", "2"], text, 100)}
    datasets.DatasetDict(parts).save_to_disk(tmp_path)
    for splits in both_ways(tmp_path):
        assert splits["test"].names == labels and splits["test"].labels.tolist() == [10, 2]


NAMED = datasets.ClassLabel(names=["cat", "dog"])
TEXT = datasets.Value("string")


@pytest.mark.parametrize(
    ("train", "test", "options", "message"),
    [
        (
            (NAMED, [0, 1]),
            (datasets.Value("int64"), [1, 0]),
            {},
            "test split of .* numbers its classes, another names",
        ),
        ((NAMED, [0, 1]), (NAMED, [0, -1]), {}, "Label -1 of image 1 of the test split is out of range"),
        ((NAMED, [0, 1]), (NAMED, [1, 0]), {"num_labels": 3}, "--num_labels 3 contradicts .*, which names 2 classes"),
        ((datasets.Value("string"), ["a", "b"]), (datasets.Value("string"), ["a", "b"]), {"num_labels": 3}, "--num_l"),
        ((NAMED, [0, 1]), (NAMED, [0, None]), {}, "Image 1 of the test split has no label"),
        ((TEXT, ["a", "b"]), (TEXT, ["a", ""]), {}, "Image 1 of the test split has no label"),
        ((datasets.Value("string"), ["a", "b"]), (datasets.Value("string"), [None, "b"]), {}, "Image 0 of the test"),
        ((datasets.Value("int64"), [1, 10]), (datasets.Value("int64"), [1, 2]), {}, "Label 10 .*--num_labels 11"),
        (
            (datasets.Value("bool"), [True, False]),
            (datasets.Value("bool"), [True, False]),
            {},
            "one integer or string",
        ),
        (
            (datasets.List(NAMED), [[0], [1]]),
            (datasets.List(NAMED), [[0], [1]]),
            {},
            "one integer or string per image",
        ),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_labels_that_cannot_be_matched_are_refused(train, test, options, message, streaming, tmp_path):
    parts = {"train": labeled(train[1] * 12, train[0]), "test": labeled(test[1], test[0], 100)}
    datasets.DatasetDict(parts).save_to_disk(tmp_path)
    args = DataArguments(dataset_name=str(tmp_path), streaming=streaming, **options)
    with pytest.raises(UsageError, match=message) as caught:
        (stream_images if streaming else load_images)(args, PROCESSOR)
    assert "\n" not in str(caught.value)


def test_parquet_files_of_a_split_with_other_classes_are_refused(tmp_path):
    for number, names in enumerate((["cat", "dog"], ["dog", "eel"])):
        labeled([0, 1], datasets.ClassLabel(names=names)).to_parquet(tmp_path / f"train-{number}.parquet")
    with pytest.raises(UsageError, match=r"files of the train split in .* name their classes differently"):
        load(tmp_path)


def test_full_mnist_is_recognized_in_a_folder(mnist):
    digits = load(mnist)
    assert {split.source for split in digits.values()} == {"ylecun/mnist"}
    assert [len(digits[name]) for name in ("train", "validation", "test")] == [55_000, 5_000, 10_000]
    assert digits["test"].labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]


@pytest.mark.parametrize("other", ["test images", "train labels", "no test split"])
@pytest.mark.parametrize("streaming", [False, True])
def test_mnist_with_other_images_or_labels_is_not_mnist(few, tmp_path, monkeypatch, other, streaming):
    """Results on it would be published as results on MNIST."""
    write_idx(tmp_path, few)
    args = DataArguments(dataset_name=str(tmp_path), streaming=streaming, validation_size=4)
    known = {name: [*values] for name, values in few.items()}
    for constant, content in (("MNIST_MD5", "images-idx3"), ("MNIST_LABELS_MD5", "labels-idx1")):
        stems = {"train": "train", "test": "t10k"}
        files = {split: (tmp_path / f"{stem}-{content}-ubyte").read_bytes() for split, stem in stems.items()}
        monkeypatch.setattr(splits_module, constant, {s: hashlib.md5(file).hexdigest() for s, file in files.items()})
    starts = {s: hashlib.md5(x.tobytes() + y.astype(np.uint8).tobytes()).hexdigest() for s, (x, y) in known.items()}
    monkeypatch.setattr(splits_module, "MNIST_START_MD5", starts)
    monkeypatch.setattr(splits_module, "MNIST_SIZE", {name: len(labels) for name, (_, labels) in known.items()})
    read = stream_images if streaming else load_images
    assert {split.source for split in read(args, PROCESSOR).values()} == {"ylecun/mnist"}
    split, part = {"test images": ("test", 0), "train labels": ("train", 1)}.get(other, ("test", 0))
    known[split][part] = known[split][part][::-1]
    write_idx(tmp_path, known)
    if other == "no test split":
        for file in tmp_path.glob("t10k-*"):
            file.unlink()
    assert {split.source for split in read(args, PROCESSOR).values()} == {tmp_path.name}


@pytest.mark.parametrize("do_deskew", [False, True])
def test_mnist_is_recognized_before_it_is_deskewed(few, tmp_path, monkeypatch, do_deskew):
    write_idx(tmp_path, few)
    plain = load(tmp_path)
    for kind, constant in (("images-idx3", "MNIST_MD5"), ("labels-idx1", "MNIST_LABELS_MD5")):
        file = (tmp_path / f"t10k-{kind}-ubyte").read_bytes()
        monkeypatch.setattr(splits_module, constant, {"test": hashlib.md5(file).hexdigest()})
    processor = VitMnistImageProcessor(do_deskew=do_deskew)
    test = load_images(DataArguments(dataset_name=str(tmp_path)), processor, ["test"])["test"]
    assert test.source == "ylecun/mnist" and test.processor is processor
    assert torch.equal(test.images, plain["test"].images) is not do_deskew


def test_sample_is_balanced_and_named(sample):
    assert sample["test"].labels.bincount().tolist() == [100] * 10
    assert sample["test"].source == SAMPLE.name


def test_only_the_sample_has_its_name(few, tmp_path):
    """A copy is the sample, too. Other images in a folder of that name are not, nor is the sample with more images. A
    name with a slash would be that of a dataset on the Hub."""
    shutil.copytree(SAMPLE, tmp_path / "copy" / SAMPLE.name)
    (tmp_path / "mine" / SAMPLE.name).mkdir(parents=True)
    write_idx(tmp_path / "mine" / SAMPLE.name, few)
    assert load(tmp_path / "copy" / SAMPLE.name, splits=["test"])["test"].source == SAMPLE.name
    assert load(tmp_path / "mine" / SAMPLE.name, splits=["test"])["test"].source == f"mine-{SAMPLE.name}"
    more = shutil.copytree(SAMPLE, tmp_path / "more" / SAMPLE.name)
    shutil.copy(next(more.glob("data/train*")), more / "data" / "train-00001-of-00002.parquet")
    assert load(more, splits=["test"])["test"].source == f"more-{SAMPLE.name}"


def test_offline_default_is_the_sample_with_one_warning(caplog, monkeypatch):
    monkeypatch.delenv(DATASET_VARIABLE, raising=False)
    digits = load(splits=["test"])
    assert digits["test"].source == SAMPLE.name
    assert len(caplog.records) == 1 and "using the bundled sample of 5,000 MNIST digits" in caplog.text


def test_environment_variable_sets_the_default_dataset(few, tmp_path, monkeypatch):
    write_idx(tmp_path, few)
    monkeypatch.setenv(DATASET_VARIABLE, str(tmp_path))
    assert len(load(splits=["test"])["test"]) == 20


def test_unreachable_hub_is_reported_without_retries(monkeypatch):
    """`load_dataset` would retry for half a minute."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # no server there
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: pytest.fail("load_dataset was called"))
    with pytest.raises(ConnectionError, match="Hub cannot be reached and someone/digits is not cached"):
        load("someone/digits")


def corrupt(folder, few):
    write_imagefolder(folder, few)
    good = (folder / "train" / "3" / "012.png").read_bytes()
    (folder / "train" / "3" / "012.png").write_bytes(good[: len(good) // 2])
    (folder / "train" / "4" / "017.png").write_bytes(b"no image at all")


def test_a_corrupt_image_is_refused_by_name(few, tmp_path):
    corrupt(tmp_path, few)
    with pytest.raises(UsageError, match=r"Cannot read .*3.012\.png: .*--skip_bad_images"):
        load(tmp_path)


def test_corrupt_images_are_skipped_on_request(few, tmp_path, caplog):
    corrupt(tmp_path, few)
    digits = load(tmp_path, validation_size=10, skip_bad_images=True)
    assert len(digits["train"]) == 28
    assert "012.png" in caplog.text and "017.png" in caplog.text


def test_a_corrupt_image_inside_parquet_is_refused_by_number(few, tmp_path):
    raw = as_dataset(few)["test"].cast_column("image", datasets.Image(decode=False)).to_list()
    raw[7]["image"] = {"bytes": b"torn", "path": None}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    datasets.DatasetDict({"test": datasets.Dataset.from_list(raw, features)}).save_to_disk(str(tmp_path))
    with pytest.raises(UsageError, match="Cannot read image 7 of the test split: "):
        load(tmp_path, ["test"])


def png(image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


MATRIX = datasets.List(datasets.List(datasets.Value("int64")))
BAD_ITEMS = {
    "a missing image": (datasets.Image(), lambda n: {"bytes": png(digit(n)), "path": None}, None),
    "bytes that are no image": (datasets.Value("binary"), lambda n: png(digit(n)), b"no image"),
    "a missing array": (datasets.Array2D((28, 28), "uint8"), lambda n: np.asarray(digit(n)), None),
    "pixels in a row": (MATRIX, lambda n: np.asarray(digit(n)).tolist(), [[1] * 3, [2] * 2]),
    "floats above 1": (
        datasets.Array2D((28, 28), "float32"), lambda n: np.asarray(digit(n)) / np.float32(255), np.full((28, 28), 2.0)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_ITEMS)
@pytest.mark.parametrize("streaming", [False, True])
def test_a_bad_image_of_any_kind_is_named_or_skipped(name, streaming, tmp_path, caplog):
    feature, good, bad = BAD_ITEMS[name]
    items = [good(number) for number in range(6)]
    items[2] = bad
    features = datasets.Features({"image": feature, "label": datasets.Value("int64")})
    table = {"image": items, "label": list(range(6))}
    datasets.DatasetDict(test=datasets.Dataset.from_dict(table, features)).save_to_disk(tmp_path)
    args = DataArguments(dataset_name=str(tmp_path), streaming=streaming)
    for options, expected in (({"skip_bad_images": False}, None), ({"skip_bad_images": True}, [0, 1, 3, 4, 5])):
        args = DataArguments(dataset_name=str(tmp_path), streaming=streaming, **options)
        if expected is None:
            with pytest.raises(UsageError, match=r"Cannot read image 2 of the test split: .*--skip_bad_images"):
                (stream_images if streaming else load_images)(args, PROCESSOR, ["test"])["test"].take(None)
            continue
        test = (stream_images if streaming else load_images)(args, PROCESSOR, ["test"])["test"].take(None)
        assert test.labels.tolist() == expected and "Skipped image 2 of the test split" in caplog.text
        assert np.array_equal(test.images.numpy(), [np.asarray(digit(number)) for number in expected])


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_an_image_of_a_stream_is_named_by_its_place_in_the_dataset(split, tmp_path):
    """Where splits are held out of `train`, it holds the image."""
    table = {"image": [f"torn {number}".encode() for number in range(60)], "label": [0, 1] * 30}
    datasets.Dataset.from_dict(table).to_parquet(tmp_path / "train.parquet")
    args = DataArguments(dataset_name=str(tmp_path), streaming=True)
    with pytest.raises(UsageError, match=r"Cannot read image \d+ of the train split"):
        stream_images(args, PROCESSOR, [split])[split].take()


def test_a_flat_vector_is_refused_by_number(tmp_path):
    features = datasets.Features({"image": datasets.List(datasets.Value("uint8")), "label": datasets.Value("int64")})
    rows = {"image": [np.asarray(digit(0)).ravel()], "label": [0]}
    datasets.DatasetDict(test=datasets.Dataset.from_dict(rows, features)).save_to_disk(tmp_path)
    with pytest.raises(UsageError, match=r"Cannot read image 0 of the test split: .*got \(784,\)"):
        load(tmp_path, ["test"])


def test_without_resizing_an_image_of_another_size_is_refused_by_number(tmp_path):
    images = [digit(0), digit(1).resize((30, 28))]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    part = datasets.Dataset.from_dict({"image": images, "label": [0, 1]}, features)
    datasets.DatasetDict(test=part).save_to_disk(tmp_path)
    processor = VitMnistImageProcessor(do_resize=False)
    with pytest.raises(UsageError, match=r"Cannot read image 1 of the test split: it has \(28, 30\) pixels"):
        load_images(DataArguments(dataset_name=str(tmp_path)), processor, ["test"])


@pytest.mark.parametrize("kind", ["encoded", "bytes", "paths", "class folders"])
def test_a_rotated_photo_is_upright_in_any_dataset(kind, tmp_path):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    photos = [tmp_path / "photos" / name / "x.jpg" for name in "ab"]
    for number, photo in enumerate(photos):
        photo.parent.mkdir(parents=True)
        digit(number).resize((60, 40)).save(photo, exif=exif)
    expected = PROCESSOR([str(photo) for photo in photos], return_tensors="pt").pixel_values
    assert not torch.equal(
        expected[:1], PROCESSOR(np.asarray(PIL.Image.open(photos[0])), return_tensors="pt").pixel_values
    )
    folder = tmp_path / "photos"
    if kind != "class folders":
        folder = tmp_path / "saved"
        feature = {"encoded": datasets.Image(), "bytes": datasets.Value("binary"), "paths": datasets.Value("string")}
        images = [photo.read_bytes() if kind == "bytes" else str(photo) for photo in photos]
        features = datasets.Features({"image": feature[kind], "label": datasets.Value("int64")})
        part = datasets.Dataset.from_dict({"image": images, "label": [0, 1]}, features)
        datasets.DatasetDict(test=part).save_to_disk(folder)
    else:
        (tmp_path / "test").mkdir()
        folder = (tmp_path / "photos").rename(tmp_path / "test" / "photos").parent.parent
    for splits in both_ways(folder, ["test"]):
        assert torch.equal(splits["test"].__getitems__([0, 1])["pixel_values"], expected)


def test_large_images_are_resized_before_the_next_are_decoded(few, tmp_path, monkeypatch):
    write_imagefolder(tmp_path, few)
    whole = load(tmp_path, ["test"])["test"].images
    monkeypatch.setattr(images_module, "MAX_PIXELS", 3 * 28 * 28)
    assert torch.equal(load(tmp_path, ["test"])["test"].images, whole)


def broken(few, kind):
    def write(folder):
        if kind == "empty folder":
            return
        if kind.startswith("empty split"):
            empty = {"train": few["train"], "test": (few["test"][0][:0], few["test"][1][:0])}
            FORMATS[kind.split()[-1]](folder, empty)
        elif kind == "no image column":
            as_dataset(few).remove_columns("image").save_to_disk(str(folder))
        elif kind == "no label column":
            as_dataset(few).remove_columns("label").save_to_disk(str(folder))
        elif kind in ("label 10", "label -1"):
            labels = few["test"][1].copy()
            labels[5] = int(kind.split()[1])
            changed = {"train": few["train"], "test": (few["test"][0], labels)}
            as_dataset(changed, datasets.Value("int64")).save_to_disk(str(folder))
        elif kind == "float labels":
            as_dataset(few, datasets.Value("float32")).save_to_disk(str(folder))
        elif kind == "torn parquet":
            write_parquet(folder, few)
            file = next(folder.rglob("test*.parquet"))
            file.write_bytes(file.read_bytes()[:-50])
        elif kind == "other splits":
            datasets.DatasetDict({"extra": as_dataset(few)["test"]}).save_to_disk(str(folder))
        elif kind.startswith("idx"):
            write_idx(folder, few, ".gz" if "gzip" in kind else "")
            file = folder / ("t10k-images-idx3-ubyte" + (".gz" if "gzip" in kind else ""))
            if kind == "idx without labels":
                (folder / "t10k-labels-idx1-ubyte").unlink()
            elif kind == "idx of something else":
                file.write_bytes(b"\x1f\x8b\x08\x00")
            elif kind == "idx with labels for images":
                shutil.copy(folder / "t10k-labels-idx1-ubyte", file)
            else:
                file.write_bytes(file.read_bytes()[:-100])

    return write


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("empty folder", "Cannot read the dataset in "),
        ("empty split, parquet", 'Cannot read the dataset in .*"test" corresponds to no data'),
        ("empty split, idx", "The test split of .* is empty"),
        ("no image column", "no column 'image', only label: pass --image_column_name"),
        ("no label column", "no column 'label', only image: pass --label_column_name"),
        ("label 10", "Label 10 of image 5 of the test split is out of range: there are 10 classes"),
        ("label -1", "Label -1 of image 5"),
        ("float labels", "must be one integer or string per image, got "),
        ("torn parquet", "Cannot read the dataset in .*"),
        ("other splits", "neither a train nor a test split, only extra"),
        ("idx cut off", "t10k-images-idx3-ubyte is cut off or too long"),
        ("idx gzip cut off", "Cannot read .*t10k-images-idx3-ubyte.gz: "),
        ("idx without labels", "lacks the images or the labels of its test split"),
        ("idx of something else", "not an IDX file of bytes: it begins with 1f8b0800"),
        ("idx with labels for images", r"do not match: images \(20,\)"),
    ],
)
def test_unusable_datasets_get_a_one_line_error(kind, message, few, tmp_path):
    broken(few, kind)(tmp_path)
    with pytest.raises(UsageError, match=message) as caught:
        load(tmp_path, ["test"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/nowhere/at/all", "No dataset folder '/nowhere/at/all'"),
        ("./nowhere", "No dataset folder './nowhere'"),
        ("my-digit", r"No folder 'my-digit'\. The Hub cannot be reached and"),
        ("here/my-digit", r"No folder 'here/my-digit'\. The Hub cannot be reached and"),
    ],
)
def test_missing_folders_are_reported_by_name(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    with pytest.raises(UsageError, match=message):
        load(name)


def test_a_file_instead_of_a_folder_is_refused(tmp_path):
    (tmp_path / "x.csv").write_text("a,b\n")
    with pytest.raises(UsageError, match="is a file"):
        load(tmp_path / "x.csv")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_train_samples": 0}, "--max_train_samples must be at least 1, got 0"),
        ({"validation_size": -1}, "--validation_size must be positive, got -1"),
        ({"validation_size": float("nan")}, "--validation_size must be positive, got nan"),
        ({"validation_size": float("inf")}, "a whole number or a fraction below 1, got inf"),
        ({"validation_size": 1.5}, "a whole number or a fraction below 1, got 1.5"),
        ({"split_seed": -1}, "--split_seed must lie in 0 to 4294967295, got -1"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        DataArguments(**options)


def test_a_validation_split_of_everything_is_refused():
    with pytest.raises(UsageError, match="Cannot hold out 4000 of 4000 images"):
        load(SAMPLE, validation_size=4000)


def test_idx_images_may_have_any_size(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 5, 4), dtype=np.uint8)
    write_idx(tmp_path, {split: (images, np.arange(3)) for split in ("train", "test")})
    raw, _ = load_raw(DataArguments(dataset_name=str(tmp_path)))
    assert np.array_equal(raw["test"].with_format("numpy")[:]["image"], images)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_split_that_exists_needs_no_train_split(streaming, tmp_path):
    part = datasets.load_dataset(str(SAMPLE), split="test").select(range(30))
    datasets.DatasetDict({"validation": part, "test": part.select(range(20))}).save_to_disk(tmp_path)
    args = DataArguments(dataset_name=str(tmp_path), streaming=streaming)
    load = stream_images if streaming else load_images
    assert len(load(args, VitMnistImageProcessor(), ["validation"])["validation"]) == 30
    with pytest.raises(UsageError, match="has no train split, only validation, test"):
        load(args, VitMnistImageProcessor(), ["train"])


@pytest.mark.parametrize("labels", [[0] * 10 + [1] * 10 + [2], [*range(10)] * 3, [0, 1], [0, 0, 0]])
def test_very_small_sets_are_split_with_a_warning(labels, tmp_path, caplog):
    """A class with one image, fewer validation images than classes, and two images."""
    parts = {"train": labeled(labels, datasets.Value("int64")), "test": labeled([0, 1], datasets.Value("int64"), 100)}
    datasets.DatasetDict(parts).save_to_disk(tmp_path)
    for splits in both_ways(tmp_path):
        sizes = [len(splits[name]) for name in ("train", "validation")]
        assert min(sizes) > 0 and sum(sizes) == len(labels)
        images = [image.numpy().tobytes() for name in ("train", "validation") for image in splits[name].images]
        assert len(set(images)) == len(labels)
    if labels != [0, 0, 0]:
        assert "whatever their class" in caplog.text


@pytest.mark.parametrize("streaming", [False, True])
def test_a_split_that_would_be_empty_is_refused(streaming, tmp_path):
    datasets.DatasetDict(train=labeled([0], datasets.Value("int64"))).save_to_disk(tmp_path / "one")
    datasets.DatasetDict(
        train=labeled([0, 1] * 12, datasets.Value("int64")), test=labeled([0], datasets.Value("int64"))
    ).save_to_disk(tmp_path / "more")
    for name, size in (("one", None), ("more", 0.999), ("more", 0.0001)):
        args = DataArguments(dataset_name=str(tmp_path / name), streaming=streaming, validation_size=size)
        with pytest.raises(UsageError, match=r"Cannot hold out (0|1|24) of (1|24) images for .*: add images"):
            (stream_images if streaming else load_images)(args, PROCESSOR)


def test_twelve_images_give_one_for_validation(tmp_path):
    parts = {"train": labeled([0] * 10, datasets.Value("int64")), "test": labeled([0], datasets.Value("int64"))}
    datasets.DatasetDict(parts).save_to_disk(tmp_path)
    assert len(load(tmp_path)["validation"]) == 1  # 10 / 12 of an image is no fraction of the images


@pytest.mark.parametrize("has_card", [False, True])
def test_two_folders_of_one_name_are_two_datasets(has_card, tmp_path):
    for start, owner in enumerate(("alice", "bob")):
        folder = tmp_path / owner / "digits"
        folder.mkdir(parents=True)
        if has_card:
            (folder / "README.md").write_text(CARD)
        for split in ("train", "test"):
            labeled([0, 1] * 12, datasets.Value("int64"), 100 * start).to_parquet(folder / f"{split}-0.parquet")
        for splits in both_ways(folder):
            assert np.array_equal(splits["test"].images[5].numpy(), np.asarray(digit(100 * start + 5)))
            assert splits["test"].names == (["cat", "dog"] if has_card else [str(number) for number in range(10)])


def test_only_a_validation_split_is_enough_to_load_it(tmp_path):
    datasets.DatasetDict(val=labeled([0, 1, 2], datasets.Value("int64"))).save_to_disk(tmp_path)
    for splits in both_ways(tmp_path, ["validation"]):
        assert splits["validation"].labels.tolist() == [0, 1, 2]
    with pytest.raises(UsageError, match="has no train split, only validation"):
        load(tmp_path, ["test"])


def write_classes(folder, splits=("train", "test"), classes="ab", number=12):
    """Class folders with images of their own, in folders of splits."""
    for split in splits:
        for name in classes:
            (folder / split / name).mkdir(parents=True)
            for index in range(number):
                seed = hash_of(split, name, index)
                digit(seed).save(folder / split / name / f"{index:02}.png")


def hash_of(*parts) -> int:
    return zlib.crc32(repr(parts).encode())


CARD = """---
dataset_info:
  features: [{name: image, dtype: image}, {name: label, dtype: {class_label: {names: {'0': cat, '1': dog}}}}]
configs:
- config_name: default
  data_files: [{split: train, path: train-*}, {split: test, path: test-*}]
---
"""
ODD_PATHS = ["a [b] c", "[ab]", "x**y", "x*", "x?", "{a,b}", "50% #1?", "über 数"]


@pytest.mark.parametrize("kind", ["class folders", "parquet", "card"])
def test_a_path_is_never_a_pattern(kind, tmp_path):
    for number, name in enumerate(["xQy", "xZ", "a", "b", "a b c", *ODD_PATHS]):  # the first match some patterns
        folder = tmp_path / name / "set"
        if kind == "class folders":
            for label in range(2):
                (folder / "test" / str(label)).mkdir(parents=True)
                digit(10 * number + label).save(folder / "test" / str(label) / "0.png")
        else:
            folder.mkdir(parents=True)
            labeled([0, 1], datasets.Value("int64"), 10 * number).to_parquet(folder / "test-0.parquet")
        if kind == "card":
            (folder / "README.md").write_text(CARD.replace("{split: train, path: train-*}, ", ""))
        for splits in both_ways(folder, ["test"]):
            expected = [np.asarray(digit(10 * number + label)) for label in range(2)]
            assert np.array_equal(splits["test"].images.numpy(), expected), name


@pytest.mark.parametrize("layout", ["train and test", "classes only"])
def test_files_that_are_no_images_are_ignored(layout, tmp_path, caplog):
    write_classes(tmp_path, ["train", "test"] if layout == "train and test" else ["."])
    before = load(tmp_path)
    folder = tmp_path / "test" / "a" if layout == "train and test" else tmp_path / "a"
    for name in ("._00.png", ".DS_Store", "Thumbs.db"):
        (folder / name).write_bytes(b"hidden")
    assert fingerprint(load(tmp_path)) == fingerprint(before) and "Ignoring" not in caplog.text
    for index in range(40):  # more than there are images
        (folder / f"{index}.txt").write_text("text")
    for name in ("scan.pdf", "00.png.json", "notes.md"):
        (folder / name).write_bytes(b"junk")
    caplog.clear()
    assert fingerprint(load(tmp_path)) == fingerprint(before)
    assert caplog.text.count("Ignoring 43 files") == 1 and "that are no images, such as" in caplog.text
    streamed = stream_images(DataArguments(dataset_name=str(tmp_path), streaming=True), PROCESSOR)
    assert sum(map(len, streamed.values())) == 48 - 24 * (layout != "train and test")


@pytest.mark.parametrize("streaming", [False, True])
def test_splits_that_are_not_used_are_warned_of(streaming, tmp_path, caplog):
    part = labeled([0, 1] * 6, datasets.Value("int64"))
    part.to_parquet(tmp_path / "files" / "train.parquet")
    part.to_parquet(tmp_path / "files" / "test.parquet")
    part.to_parquet(tmp_path / "files" / "unlabeled.parquet")
    datasets.DatasetDict(train=part, test=part, dev=part, unlabeled=part).save_to_disk(tmp_path / "saved")
    write_classes(tmp_path / "folders", ["train", "val", "test", "more"])
    for name, message in (
        ("files", "Ignoring 1 files in .* that are in no split, such as unlabeled.parquet"),
        ("saved", "Not using the splits unlabeled of saved"),
        ("folders", "Ignoring 24 files in .* that are in no split, such as more/a/00.png"),
    ):
        caplog.clear()
        args = DataArguments(dataset_name=str(tmp_path / name), streaming=streaming)
        splits = (stream_images if streaming else load_images)(args, PROCESSOR)
        assert re.search(message, caplog.text)
        held_out = {"files": {1, 2, 3}, "saved": {12}, "folders": {24}}[name]  # dev and val are validation splits
        assert len(splits["validation"]) in held_out


def test_names_of_classes_and_photos_make_no_splits(tmp_path):
    write_classes(tmp_path / "classes", ["train", "test"], ["car", "test", "train"])
    for splits in both_ways(tmp_path / "classes"):
        assert len(splits["test"]) == len(splits["train"]) + len(splits["validation"]) == 36
        images = [{image.numpy().tobytes() for image in split.images} for split in splits.values()]
        assert not images[0] & images[2] and not images[1] & images[2]
    write_classes(tmp_path / "photos", ["."], ["cat", "dog", "train"])
    (tmp_path / "photos" / "cat" / "00.png").rename(tmp_path / "photos" / "cat" / "test 1.png")
    for splits in both_ways(tmp_path / "photos"):
        assert sum(map(len, splits.values())) == 36 and splits["test"].names == ["cat", "dog", "train"]


@pytest.mark.parametrize("name", ["clip.mpg", "figure.eps", "figure.WMF"])
def test_formats_that_pillow_cannot_decode_are_ignored(name, tmp_path, caplog):
    write_classes(tmp_path)
    (tmp_path / "train" / "a" / name).write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n")
    for splits in both_ways(tmp_path):
        assert len(splits["train"]) + len(splits["validation"]) == 24
    assert caplog.text.count(f"Ignoring 1 files in {tmp_path} that are no images, such as train/a/{name}") == 2


NO_CARDS = {
    "latin-1": "# Ma collection\n\xe9crite".encode("latin-1"),
    "a rule": b"---\nMy photos: digits: of me\n---\n",
    "a torn list": b"---\ntags: [a\n---\n",
    "a list": b"---\n- a\n---\n",
    "configurations that are none": b"---\nconfigs: 3\n---\n",
}


@pytest.mark.parametrize("layout", ["class folders", "parquet"])
@pytest.mark.parametrize("kind", NO_CARDS)
def test_a_readme_that_is_no_dataset_card_is_ignored_by_name(kind, layout, few, tmp_path, caplog):
    write_imagefolder(tmp_path, few) if layout == "class folders" else write_parquet(tmp_path, few)
    before = fingerprint(load(tmp_path, ["test"]))
    (tmp_path / "README.md").write_bytes(NO_CARDS[kind])
    splits, streamed = both_ways(tmp_path, ["test"])
    assert fingerprint(splits) == before and torch.equal(streamed["test"].images, splits["test"].images)
    assert caplog.text.count(f"Ignoring {tmp_path / 'README.md'}, which is no dataset card: ") == 2


def test_images_beside_more_tables_are_not_ignored_silently(tmp_path, caplog):
    write_classes(tmp_path)
    (tmp_path / "annotations").mkdir()
    for number in range(50):
        (tmp_path / "annotations" / f"{number}.json").write_text("{}")
    with pytest.raises(UsageError):
        load(tmp_path)
    assert "Ignoring 48 files in" in caplog.text and "that are no .json files, such as test/a/00.png" in caplog.text


def test_a_table_beside_images_is_named(tmp_path):
    (tmp_path / "images").mkdir()
    digit(0).save(tmp_path / "images" / "0.png")
    (tmp_path / "train.csv").write_text("image,label\nimages/0.png,1\n")
    with pytest.raises(UsageError, match=r"\(found images/0\.png\), .* file_name and label \(found train\.csv\)\."):
        load(tmp_path)


def test_a_relative_path_in_a_table_is_shown_as_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "test.csv").write_text("image,label\nimages/0.png,1\n")
    with pytest.raises(UsageError, match=f"No such file or directory: '{re.escape(str(tmp_path))}/images/0.png'"):
        load("./set", ["test"])


@pytest.mark.parametrize("layout", ["MNIST/raw", "beside folders"])
def test_mnist_files_as_others_keep_them(layout, few, tmp_path):
    """In the folder of torchvision, and beside folders of the same names, each with a copy, as on Kaggle."""
    place = tmp_path / layout if layout == "MNIST/raw" else tmp_path
    place.mkdir(parents=True, exist_ok=True)
    write_idx(place, few, dot=layout == "beside folders")
    for file in sorted(place.iterdir()) if layout == "beside folders" else ():
        copy = place / file.name.replace(".", "-")
        copy.mkdir()
        shutil.copy(file, copy / copy.name)
    for splits in both_ways(tmp_path, ["test"]):
        assert np.array_equal(splits["test"].images.numpy(), few["test"][0])
    if layout == "MNIST/raw":
        shutil.copytree(place, tmp_path / "FashionMNIST" / "raw")
        with pytest.raises(UsageError, match=r"holds several datasets: pass one of .*FashionMNIST/raw, .*MNIST/raw\."):
            load(tmp_path)


def test_mnist_files_of_other_names_are_refused_with_the_names_expected(few, tmp_path):
    write_idx(tmp_path, few)
    for file in list(tmp_path.iterdir()):
        file.rename(tmp_path / f"emnist-digits-{file.name}")
    with pytest.raises(UsageError, match=r"no tables, no images and no MNIST files \(train-images-idx3-ubyte, "):
        load(tmp_path)


@pytest.mark.parametrize("layout", ["class folders", "parquet", "saved"])
def test_names_of_splits_may_have_capitals(layout, tmp_path):
    if layout == "class folders":
        write_classes(tmp_path, ["Train", "Val", "TEST"])
    else:
        parts = {name: labeled([0, 1] * 12, datasets.Value("int64"), 100) for name in ("Train", "Val", "TEST")}
        for name, part in parts.items() if layout == "parquet" else ():
            part.to_parquet(tmp_path / f"MNIST_{name}.parquet")
        if layout == "saved":
            datasets.DatasetDict(parts).save_to_disk(tmp_path)
    for splits in both_ways(tmp_path):
        assert [len(split) for split in splits.values()] == [24, 24, 24]


def test_images_without_labels_get_advice(tmp_path):
    write_classes(tmp_path, ["."])
    digit(0).save(tmp_path / "cover.png")
    with pytest.raises(UsageError, match=r"have no labels: .* all at one depth \(found cover.png and a/00.png\)"):
        load(tmp_path)


def test_one_column_cannot_hold_images_and_labels(few, tmp_path):
    as_dataset(few).save_to_disk(str(tmp_path))
    with pytest.raises(UsageError, match="The column 'image' cannot hold both images and labels"):
        load(tmp_path, label_column_name="image")


def test_columns_may_have_each_other_s_names(few, tmp_path):
    swapped = as_dataset(few).rename_columns({"image": "x", "label": "image"}).rename_column("x", "label")
    swapped.save_to_disk(str(tmp_path))
    for splits in both_ways(tmp_path, ["test"], image_column_name="label", label_column_name="image"):
        assert np.array_equal(splits["test"].images.numpy(), few["test"][0])
        assert np.array_equal(splits["test"].labels.numpy(), few["test"][1])


def change(folder, kind):
    """Make one change of a kind to the class folders of a dataset."""
    images = sorted((folder / "test" / "b").iterdir())
    if kind == "pixel":
        pixels = np.array(PIL.Image.open(images[3]))
        pixels[5, 5] ^= 1
        PIL.Image.fromarray(pixels).save(images[3])
    elif kind == "label":
        images[3].rename(folder / "test" / "a" / "new.png")
    elif kind == "name":
        for split in ("train", "test"):
            (folder / split / "b").rename(folder / split / "c")
    elif kind == "split":
        images[3].rename(folder / "train" / "b" / "new.png")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["nothing", "pixel", "label", "name", "split", "seed"])
def test_the_fingerprint_depends_on_content_alone(kind, streaming, tmp_path):
    write_classes(tmp_path / "alice" / "digits")
    shutil.copytree(tmp_path / "alice" / "digits", tmp_path / "bob" / "digits")
    change(tmp_path / "bob" / "digits", kind)
    prints = []
    for owner in ("alice", "bob"):
        seed = 1 if (kind, owner) == ("seed", "bob") else 0
        args = DataArguments(dataset_name=str(tmp_path / owner / "digits"), streaming=streaming, split_seed=seed)
        prints.append(fingerprint((stream_images if streaming else load_images)(args, PROCESSOR)))
    assert all(re.fullmatch("[0-9a-f]{16}", text) for text in prints)
    assert (prints[0] == prints[1]) == (kind == "nothing")


def test_the_fingerprint_of_a_format_is_that_of_its_pixels(few, tmp_path):
    prints = set()
    for name in ("parquet", "imagefolder", "saved", "idx gzipped"):
        (tmp_path / name).mkdir()
        FORMATS[name](tmp_path / name, few)
        prints.add(fingerprint(load(tmp_path / name, ["test"])))
    assert len(prints) == 1
    assert prints != {fingerprint(load(tmp_path / "saved", ["test"], max_eval_samples=19))}


FAILURES = [
    (OSError(errno.ENOSPC, "No space left on device"), OSError, "No space left on device"),
    (PermissionError(errno.EACCES, "Permission denied", "/some/file"), OSError, "Permission denied: '/some/file'"),
    (
        ValueError("BuilderConfig 'x' not found."),
        UsageError,
        "Cannot read the dataset in .*BuilderConfig 'x' not found",
    ),
    (ConnectionError("down"), None, "the bundled sample"),
    (TimeoutError("slow"), None, "the bundled sample"),
]


@pytest.mark.parametrize("is_wrapped", [False, True])
@pytest.mark.parametrize(("failure", "expected", "message"), FAILURES)
def test_only_a_connection_failure_falls_back_to_the_sample(
    failure, expected, message, is_wrapped, monkeypatch, caplog
):
    real = datasets.load_dataset

    def fail(path, **options):
        if path != "ylecun/mnist":
            return real(path, **options)
        if not is_wrapped:
            raise failure
        raise datasets.exceptions.DatasetGenerationError("An error occurred") from failure

    monkeypatch.delenv(DATASET_VARIABLE, raising=False)
    monkeypatch.setattr(datasets, "load_dataset", fail)
    if expected is None:
        assert load(splits=["test"])["test"].source == SAMPLE.name and message in caplog.text
        return
    with pytest.raises(expected, match=message):
        load(splits=["test"])
    assert "bundled sample" not in caplog.text


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EFBIG])
def test_a_failed_write_names_the_cache_folder(code, few, tmp_path, monkeypatch):
    write_parquet(tmp_path, few)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    error = datasets.exceptions.DatasetGenerationError("An error occurred")
    error.__cause__ = OSError(code, "no room")
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: (_ for _ in ()).throw(error))
    with pytest.raises(OSError, match=r"no room: .*cache"):
        load(tmp_path)


@pytest.mark.parametrize("variable", ["HF_DATASETS_CACHE", "HF_HOME"])
def test_an_unwritable_cache_folder_is_blamed_itself(variable, few, tmp_path, monkeypatch):
    """With the variable that has an effect: `HF_DATASETS_CACHE` overrides `HF_HOME`."""
    monkeypatch.setenv(variable, str(tmp_path / "file" / "cache"))
    write_parquet(tmp_path, few)
    (tmp_path / "file").touch()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file" / "cache")
    with pytest.raises(
        UsageError, match=rf"Cannot write to the folder .*file.cache: .*set {variable} to another folder"
    ):
        load(tmp_path)


@pytest.mark.parametrize("layout", ["saved", "parquet"])
def test_all_splits_use_the_same_columns(layout, tmp_path):
    """Where the splits list several columns of a kind in different orders, or one split has further columns."""
    number, parity = datasets.Value("int64"), datasets.ClassLabel(names=["even", "odd"])
    classes = datasets.ClassLabel(names=["a", "b", "c"])
    base = {"image": datasets.Image(), "mask": datasets.Image()}
    orders = {
        "order": ({**base, "fine": classes, "coarse": parity}, ["mask", "image", "coarse", "fine"]),
        "further": ({**base, "label": number}, ["writer", "mask", "label", "image"]),
    }
    rows = {"image": [digit(n) for n in range(24)], "mask": [digit(100 + n) for n in range(24)]}
    rows |= {"fine": [0, 1, 2] * 8, "label": [0, 1, 2] * 8, "coarse": [0, 1] * 12, "writer": [0, 1] * 12}
    for name, (features, reordered) in orders.items():
        orders = {"train": features, "test": {name: {**features, "writer": parity}[name] for name in reordered}}
        parts = {
            split: datasets.Dataset.from_dict({name: rows[name] for name in order}, datasets.Features(order))
            for split, order in orders.items()
        }
        if layout == "saved":
            datasets.DatasetDict(parts).save_to_disk(tmp_path / name)
        for split, part in parts.items() if layout == "parquet" else ():
            part.to_parquet(tmp_path / name / f"{split}.parquet")
        for splits in both_ways(tmp_path / name, ["test"]):
            assert np.array_equal(splits["test"].images.numpy(), [np.asarray(image) for image in rows["image"]])
            assert splits["test"].labels.tolist() == rows["fine"]
