"""Streams give the same images as datasets in memory, hold out disjoint splits, and train and predict."""

from dataclasses import replace

import datasets
import numpy as np
import PIL.Image
import pytest
import torch

from modeling_vit_mnist import VitMnistImageProcessor
from modeling_vit_mnist.cli.errors import UsageError
from modeling_vit_mnist.data import streaming
from modeling_vit_mnist.data.arguments import DataArguments
from modeling_vit_mnist.data.splits import load_images, stream_images
from modeling_vit_mnist.training.train import train

from .conftest import SAMPLE, Stop, arguments, stop_after, weights

PROCESSOR = VitMnistImageProcessor()


def stream(folder=SAMPLE, splits=("train", "validation", "test"), **options):
    digits = stream_images(DataArguments(dataset_name=str(folder), streaming=True, **options), PROCESSOR, splits)
    if "train" in digits:
        digits["train"] = replace(digits["train"], shuffle_seed=0)
    return digits


def rows(digits) -> list[tuple[bytes, int]]:
    """Images and labels, comparable one by one."""
    return [(image.numpy().tobytes(), int(label)) for image, label in zip(digits.images, digits.labels, strict=True)]


def all_rows(streamed) -> list[tuple[bytes, int]]:
    return [row for chunk in streamed.chunks() for row in rows(chunk)]


@pytest.fixture
def shards(tmp_path):
    """600 digits in three parquet files, sorted by class, so that a contiguous split would lack classes."""
    digits = datasets.load_dataset(str(SAMPLE), split="train").select(range(600)).sort("label")
    for number in range(3):
        digits.shard(3, number, contiguous=True).to_parquet(tmp_path / f"train-{number}-of-3.parquet")
    datasets.load_dataset(str(SAMPLE), split="test").select(range(50)).to_parquet(tmp_path / "test-0-of-1.parquet")
    return tmp_path


def test_the_test_split_equals_the_one_in_memory(sample):
    streamed = stream()["test"]
    assert len(streamed) == len(sample["test"]) and streamed.names == sample["test"].names
    assert all_rows(streamed) == rows(sample["test"])
    expected = sample["test"].__getitems__(range(3))
    for index, item in zip(range(3), streamed, strict=False):
        torch.testing.assert_close(item["pixel_values"], expected["pixel_values"][index], rtol=0, atol=0)
        assert item["labels"] == expected["labels"][index]


@pytest.mark.parametrize("buffer", [streaming.SHUFFLE_BUFFER, 100])
def test_every_epoch_holds_every_training_image_once(shards, monkeypatch, buffer):
    monkeypatch.setattr(streaming, "SHUFFLE_BUFFER", buffer)
    monkeypatch.setattr(streaming, "CHUNK", 30)
    digits = stream(shards)
    everything = sorted(rows(load_images(DataArguments(dataset_name=str(shards)), PROCESSOR, ["train"])["train"]))
    everything += rows(load_images(DataArguments(dataset_name=str(shards)), PROCESSOR, ["validation"])["validation"])
    held_out, orders = rows(digits["validation"]), []
    for epoch in (0, 1, 0):
        digits["train"].set_epoch(epoch)
        orders.append(all_rows(digits["train"]))
        assert sorted(orders[-1] + held_out) == sorted(everything)
        assert len(orders[-1]) == len(digits["train"]) and not set(orders[-1]) & set(held_out)
    assert orders[0] == orders[2] != orders[1]
    assert all_rows(replace(digits["train"], shuffle_seed=1)) != orders[0]
    assert [label for _, label in all_rows(replace(digits["train"], shuffle_seed=None))] == sorted(
        label for _, label in orders[0]
    )
    assert len(set(digits["validation"].labels.tolist())) == 10  # though the files are sorted by class
    assert 30 < len(held_out) < 70  # about a twelfth of 600
    labels = [label for _, label in orders[0]]
    assert np.corrcoef(labels, range(len(labels)))[0, 1] < 0.5  # 1 in the order of the files


def test_validation_split_depends_on_seed_and_size(shards):
    seeds = [rows(stream(shards, split_seed=seed)["validation"]) for seed in (0, 0, 1)]
    assert seeds[0] == seeds[1] != seeds[2]
    for size in (0.3, 180):
        digits = stream(shards, validation_size=size)
        assert 150 < len(digits["validation"]) < 210
        assert len(digits["validation"]) + len(digits["train"]) == 600
    with pytest.raises(UsageError, match="Cannot hold out 600 of 600 images"):
        stream(shards, validation_size=600)


def test_without_a_test_split_a_sixth_of_train_is_held_out(shards):
    (shards / "test-0-of-1.parquet").unlink()
    digits = stream(shards)
    parts = [all_rows(digits["train"]), rows(digits["validation"]), all_rows(digits["test"])]
    assert sum(map(len, parts)) == 600 and 70 < len(parts[2]) < 130
    assert len(set().union(*parts)) == 600


@pytest.mark.parametrize(("size", "expected"), [(0.2, 100), (100, 100), (None, 500 / 12), (0.9, 450)])
def test_a_fraction_for_validation_is_of_what_the_test_split_leaves(size, expected, shards):
    """As in memory, but drawn by chance: within four standard deviations of a binomial distribution."""
    (shards / "test-0-of-1.parquet").unlink()
    whole = load_images(DataArguments(dataset_name=str(shards), validation_size=size), PROCESSOR)
    assert len(whole["validation"]) == round(expected)
    streamed = len(stream(shards, validation_size=size)["validation"])
    assert abs(streamed - expected) < 4 * (expected * (1 - expected / 600)) ** 0.5


@pytest.mark.parametrize("do_deskew", [False, True])
def test_full_mnist_is_recognized_in_a_stream(mnist, do_deskew):
    processor = VitMnistImageProcessor(do_deskew=do_deskew)
    digits = stream_images(DataArguments(dataset_name=str(mnist), streaming=True, max_eval_samples=100), processor)
    assert {split.source for split in digits.values()} == {"ylecun/mnist"}
    args = DataArguments(dataset_name=str(mnist), streaming=True, max_eval_samples=100)
    alone = stream_images(args, processor, ["validation"])["validation"]
    assert alone.source == "ylecun/mnist"  # by which a run's own split is known


def test_a_test_image_that_cannot_be_read_stops_a_run_before_it_trains(sample, tmp_path):
    for split in ("train", "test"):
        for index, (image, label) in enumerate(zip(sample[split].images[:100], sample[split].labels, strict=False)):
            file = tmp_path / "digits" / split / str(label.item()) / f"{index}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray(image.numpy()).save(file)
    file.write_bytes(b"torn")
    flags = ["--streaming", f"--dataset_name={tmp_path / 'digits'}"]
    with pytest.raises(UsageError, match=r"Cannot read .*png: .*--skip_bad_images"):
        train(*arguments(tmp_path / "run", *flags))
    assert not list((tmp_path / "run").glob("checkpoint-*"))


@pytest.mark.parametrize("streaming", [False, True])
def test_images_that_are_nearly_black_are_named(streaming, tmp_path, caplog):
    images = np.random.default_rng(0).integers(0, 2, (40, 28, 28), dtype=np.uint8)  # masks of 0 and 1
    features = datasets.Features({"image": datasets.Array2D((28, 28), "uint8"), "label": datasets.Value("int64")})
    masks = datasets.Dataset.from_dict({"image": images, "label": [0, 1] * 20}, features)
    datasets.DatasetDict({"train": masks, "test": masks}).save_to_disk(tmp_path / "masks")
    args = DataArguments(dataset_name=str(tmp_path / "masks"), streaming=streaming)
    (stream_images if streaming else load_images)(args, PROCESSOR)
    assert "is brighter than 1 of 255" in caplog.text


def test_limits(shards):
    digits = stream(shards, max_train_samples=40, max_eval_samples=7)
    assert [len(digits[split]) for split in ("train", "validation", "test")] == [40, 7, 7]
    digits["train"].set_epoch(1)
    first = all_rows(digits["train"])
    digits["train"].set_epoch(2)
    assert sorted(first) == sorted(all_rows(digits["train"])) and len(first) == 40


def test_other_formats_and_text_labels(tmp_path):
    labels = ["cat", "dog"] * 10
    images = np.random.default_rng(0).integers(0, 256, (20, 28, 28), dtype=np.uint8)
    features = datasets.Features({"picture": datasets.Array2D((28, 28), "uint8"), "kind": datasets.Value("string")})
    saved = datasets.Dataset.from_dict({"picture": images, "kind": labels}, features)
    datasets.DatasetDict({"train": saved, "test": saved}).save_to_disk(tmp_path / "saved")
    digits = stream(tmp_path / "saved", label_column_name="kind", validation_size=0.3)
    assert digits["test"].names == ["cat", "dog"]
    (chunk,) = digits["test"].chunks()
    np.testing.assert_array_equal(chunk.images, images)
    assert chunk.labels.tolist() == [0, 1] * 10
    alone = stream(tmp_path / "saved", ["test"], label_column_name="kind")["test"]
    assert all_rows(alone) == rows(chunk)


def test_workers_do_not_repeat_images(shards):
    loader = torch.utils.data.DataLoader(stream(shards)["test"], batch_size=16, num_workers=2)
    assert sum(len(batch["labels"]) for batch in loader) == 50


@pytest.fixture
def unusable(tmp_path):
    """Folders of twenty digits each. In one a file is not an image, in the other a label is out of range."""
    good = datasets.load_dataset(str(SAMPLE), split="test").select(range(20))
    good = good.cast_column("image", datasets.Image(decode=False))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    images, labels = list(good["image"]), list(good["label"])
    for name in ("image", "label"):
        rows = {"image": list(images), "label": list(labels)}
        if name == "image":
            rows["image"][3] = {"bytes": b"no image", "path": "3.png"}
        else:
            rows["label"][5] = 12
        datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path / name / "test-0-of-1.parquet")
    return tmp_path


def test_bad_images_and_labels_are_reported(unusable):
    image = stream(unusable / "image", ["test"])["test"]
    with pytest.raises(UsageError, match=r"Cannot read .*3\.png: .*--skip_bad_images"):
        list(image)
    assert len(list(stream(unusable / "image", ["test"], skip_bad_images=True)["test"])) == 19
    with pytest.raises(UsageError, match="Label 12 of image 5 of the test split is out of range"):
        list(stream(unusable / "label", ["test"])["test"])


@pytest.fixture
def torn(tmp_path):
    """The quick sample as parquet with a quarter of the images unreadable, in three files."""
    for split, number in (("train", 400), ("test", 80)):
        part = datasets.load_dataset(str(SAMPLE), split=split).select(range(number))
        rows = part.cast_column("image", datasets.Image(decode=False)).to_list()
        for index in range(1, number, 4):
            rows[index]["image"] = {"bytes": b"torn", "path": None} if index % 3 else None
        part = datasets.Dataset.from_list(rows, part.features)
        for shard in range(3):
            part.shard(3, shard).to_parquet(tmp_path / "torn" / f"{split}-{shard}-of-3.parquet")
    return tmp_path / "torn"


@pytest.mark.parametrize("limit", [None, 50])
def test_a_stream_counts_the_images_that_it_reads(torn, limit, caplog):
    options = {"skip_bad_images": True, "max_train_samples": limit, "max_eval_samples": limit}
    digits = stream(torn, **options)
    assert caplog.text.count("which cannot be read") == 120  # once, not in every epoch
    for epoch in (0, 1):
        digits["train"].set_epoch(epoch)
        assert len(all_rows(digits["train"])) == len(digits["train"])
        assert len(list(digits["train"])) == len(digits["train"])
    assert len(digits["test"].take()) == len(digits["test"]) == (limit or 60)
    assert caplog.text.count("which cannot be read") == 120
    in_memory = load_images(DataArguments(dataset_name=str(torn), **options), PROCESSOR)
    if limit is None:
        assert len(digits["train"]) + len(digits["validation"]) == 300
        assert all_rows(digits["test"]) == rows(in_memory["test"])
    else:
        assert [len(split) for split in in_memory.values()] == [50, 25, 50] and len(digits["train"]) == 50


def test_a_run_on_a_stream_with_bad_images_counts_what_it_reads(torn, tmp_path, capsys):
    more = ("--streaming", "--skip_bad_images", f"--dataset_name={torn}", "--num_train_epochs=2", "--max_steps=-1")
    results = train(*arguments(tmp_path / "run", *more))
    assert results["test_samples"] == 60 and results["train_samples"] + results["validation_samples"] == 300
    sizes = f"{results['train_samples']} train, {results['validation_samples']} validation, 60 test images"
    assert f"Data: {sizes}" in capsys.readouterr().out
    assert results["test_accuracy"] * 60 == pytest.approx(round(results["test_accuracy"] * 60))


def test_a_stream_without_a_readable_image_is_refused(tmp_path):
    images = {"image": [b"torn"] * 20, "label": [0, 1] * 10}
    datasets.Dataset.from_dict(images).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(UsageError, match=r"No image of the train split of .* can be read"):
        stream(tmp_path, skip_bad_images=True)


def test_a_missing_image_file_is_named_before_training(tmp_path):
    datasets.load_dataset(str(SAMPLE), split="test")[0]["image"].save(tmp_path / "0.png")
    paths = [str(tmp_path / f"{min(index, 1)}.png") for index in range(30)]
    text = datasets.Features({"image": datasets.Value("string"), "label": datasets.Value("int64")})
    datasets.Dataset.from_dict({"image": paths, "label": [0, 1] * 15}, text).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(UsageError, match=r"Cannot read .*1\.png: .*No such file"):
        stream(tmp_path)


def test_a_moved_folder_of_images_is_split_in_the_same_way(tmp_path):
    digits = datasets.load_dataset(str(SAMPLE), split="train").select(range(120))
    for index, row in enumerate(digits):
        file = tmp_path / "here" / "train" / str(row["label"]) / f"{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        row["image"].save(file)
    before = stream(tmp_path / "here")
    (tmp_path / "there").mkdir()
    (tmp_path / "here").rename(tmp_path / "there" / "moved")
    after = stream(tmp_path / "there" / "moved")
    assert rows(before["validation"]) == rows(after["validation"])
    assert len(before["train"]) == len(after["train"])


def test_parts_that_hashes_leave_empty_hold_an_image_each(tmp_path, caplog):
    digits = datasets.load_dataset(str(SAMPLE), split="train")
    for number in (3, 4, 7):
        digits.select(range(number)).to_parquet(tmp_path / str(number) / "train.parquet")
        for seed in range(3):
            splits = stream(tmp_path / str(number), split_seed=seed)
            parts = [all_rows(splits["train"]), rows(splits["validation"]), all_rows(splits["test"])]
            assert all(parts) and sum(map(len, parts)) == len(set().union(*parts)) == number
    assert "splitting by rank instead" in caplog.text
    digits.select([0, 0, 0]).to_parquet(tmp_path / "same" / "train.parquet")
    with pytest.raises(UsageError, match="Cannot hold out test and validation of 1 different images"):
        stream(tmp_path / "same")


@pytest.mark.parametrize("recipe", ["fast", "adam"])
def test_a_resumed_run_on_a_stream_equals_an_uninterrupted_one(recipe, tmp_path, monkeypatch, capsys):
    more = (
        "--streaming", f"--recipe=configs/{recipe}.yaml", "--max_train_samples=700", "--num_train_epochs=2",
        "--max_translate=1", "--elastic_std=1", "--warmup_steps=2", "--save_strategy=epoch", "--eval_strategy=epoch",
    )  # fmt: skip
    train(*arguments(tmp_path / "whole", *more))
    assert "700 train, 100 validation, 100 test images" in capsys.readouterr().out
    with monkeypatch.context() as patch:
        stop_after(1, patch)
        with pytest.raises(Stop):
            train(*arguments(tmp_path / "resumed", *more))
    train(*arguments(tmp_path / "resumed", *more))
    assert "Resuming from" in capsys.readouterr().out
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "resumed")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_predictions_equal_those_in_memory(run_script, tmp_path):
    outputs = []
    for flag in ((), ("--streaming",)):
        for suffix in ("jsonl", "csv", "parquet"):
            output = tmp_path / f"{len(outputs)}.{suffix}"
            done = run_script(
                "run_inference.py", "--dataset_name", SAMPLE, "--num_samples", 0, "--batch_size", 128, "--top_k", 2,
                "--output", output, "--quiet", "no", *flag,
            )  # fmt: skip
            assert done.code == 0, done.err
            lines = [line for line in done.out.splitlines() if line.startswith("Idx")]
            outputs.append((lines, output))
    assert all(lines == outputs[0][0] and len(lines) == 1000 for lines, _ in outputs)
    for memory, streamed in zip(outputs[:2], outputs[3:5], strict=True):
        assert memory[1].read_text() == streamed[1].read_text()
    tables = [datasets.Dataset.from_parquet(str(outputs[at][1])).to_list() for at in (2, 5)]
    assert tables[0] == tables[1] and len(tables[0]) == 1000


def test_an_empty_split_leaves_the_old_output(run_script, tmp_path):
    empty = datasets.load_dataset(str(SAMPLE), split="test").select([])
    empty.to_parquet(tmp_path / "set" / "test-0-of-1.parquet")
    (tmp_path / "old.csv").write_text("old\n")
    done = run_script(
        "run_inference.py", "--dataset_name", tmp_path / "set", "--streaming", "--output", tmp_path / "old.csv"
    )
    assert done.code == 2 and "There are no test images of set" in done.err
    assert (tmp_path / "old.csv").read_text() == "old\n"


def test_views_refuse_streams(run_script, tmp_path):
    done = run_script("run_visualize.py", "data", "--streaming", "--output_dir", tmp_path)
    assert done.code == 2 and "--streaming" in done.err
