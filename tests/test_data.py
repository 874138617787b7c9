"""Datasets of every format, the offline default, the splits, and one-line errors for unusable datasets."""

import gzip
import shutil
import struct

import datasets
import huggingface_hub
import numpy as np
import PIL.Image
import pytest
import torch

from modeling_vit_mnist import VitMnistImageProcessor
from modeling_vit_mnist.cli.errors import UsageError
from modeling_vit_mnist.data.arguments import DATASET_VARIABLE, DataArguments
from modeling_vit_mnist.data.sources import load_raw
from modeling_vit_mnist.data.splits import load_images, stream_images

from .conftest import SAMPLE

PROCESSOR = VitMnistImageProcessor()


def load(folder=None, splits=("train", "validation", "test"), **options):
    return load_images(DataArguments(dataset_name=folder and str(folder), **options), PROCESSOR, splits)


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


def test_without_a_test_split_a_sixth_of_train_is_held_out(few, tmp_path, caplog):
    datasets.concatenate_datasets(list(as_dataset(few).values())).save_to_disk(str(tmp_path))
    digits = load(tmp_path, validation_size=10)
    assert [len(digits[name]) for name in ("train", "validation", "test")] == [40, 10, 10]
    assert digits["test"].labels.bincount().tolist() == [1] * 10
    assert "no test split" in caplog.text


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


def test_full_mnist_is_recognized_in_a_folder(mnist):
    digits = load(mnist)
    assert {split.source for split in digits.values()} == {"ylecun/mnist"}
    assert [len(digits[name]) for name in ("train", "validation", "test")] == [55_000, 5_000, 10_000]
    assert digits["test"].labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]


def test_sample_is_balanced_and_named(sample):
    assert sample["test"].labels.bincount().tolist() == [100] * 10
    assert sample["test"].source == SAMPLE.name


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
    [("/nowhere/at/all", "No dataset folder '/nowhere/at/all'"), ("./nowhere", "No dataset folder './nowhere'")],
)
def test_missing_folders_are_reported_by_name(name, message):
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
