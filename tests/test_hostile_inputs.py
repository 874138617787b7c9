"""What a stranger hands over costs little: sizes are checked before work, only regular files are read, names are text,
and secrets stay off the disk. Each `UsageError` becomes one line and exit code 2 in the scripts."""

import gzip
import http.server
import io
import json
import os
import pickle
import resource
import shutil
import struct
import threading
import time
import zipfile
import zlib

import datasets
import numpy as np
import pandas
import PIL.Image
import pyarrow.parquet
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import load_file, save_file

from modeling_vit_mnist import VitMnistConfig, VitMnistForImageClassification, VitMnistImageProcessor
from modeling_vit_mnist.checkpoints.convert import export_vit, import_checkpoint
from modeling_vit_mnist.checkpoints.folder import load_checkpoint
from modeling_vit_mnist.cli.errors import UsageError, csv_cell, describe_error
from modeling_vit_mnist.data.arguments import DataArguments
from modeling_vit_mnist.data.sources import load_raw
from modeling_vit_mnist.data.splits import load_images
from modeling_vit_mnist.grayscale_vit_mnist import MAX_IMAGE_PIXELS
from modeling_vit_mnist.image_processing_vit_mnist import open_image
from modeling_vit_mnist.training.arguments import parse_arguments
from modeling_vit_mnist.training.train import train

from .conftest import QUICK, ROOT, SAMPLE, TINY, Stop, arguments, stop_after

PROCESSOR = VitMnistImageProcessor()
DIGIT = PIL.Image.open(TINY / "digit-7.png")


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@pytest.fixture(autouse=True)
def cheap(request):
    """Every test here takes little memory, and its refusals little time. The time of a busy machine is no measure, so
    the limit is that of the processor."""
    before, started = peak_megabytes(), time.process_time()
    yield
    is_run = "run_script" in request.fixturenames or "costs" in request.keywords
    assert peak_megabytes() - before < (400 if is_run else 150)
    assert is_run or time.process_time() - started < 1


# Sizes before work

CONFIGS = [
    {"num_hidden_layers": 10**6}, {"depth": 10**6}, {"num_labels": 3 * 10**7}, {"num_classes": 3 * 10**7},
    {"hidden_size": 10**9}, {"embed_dim": 10**400}, {"hidden_size": 2**14, "num_hidden_layers": 1000},
    {"intermediate_size": 10**12}, {"mlp_ratio": 1e300}, {"image_size": 10**6}, {"image_size": 1024, "patch_size": 1},
    {"image_size": 10**20, "patch_size": 10**20}, {"num_channels": 10**8}, {"num_attention_heads": 10**30},
    {"id2label": {index: str(index) for index in range(100_001)}},
    {"label2id": {str(index): index for index in range(100_001)}},
]  # fmt: skip
TOO_LARGE = (ValueError, StrictDataclassError)


@pytest.mark.parametrize("fields", CONFIGS, ids=lambda fields: " ".join(f"{name}" for name in fields))
def test_a_config_of_impossible_sizes_is_refused(fields):
    with pytest.raises(TOO_LARGE, match=r"must (be|have) at most"):
        VitMnistConfig(**fields)
    with pytest.raises(TOO_LARGE, match=r"must (be|have) at most"):
        VitMnistConfig.from_dict({"model_type": "vit_mnist", **fields})
    if len(fields) == 1:
        config = VitMnistConfig()
        with pytest.raises((*TOO_LARGE, AttributeError), match=r"at most|no setter"):
            setattr(config, *next(iter(fields.items())))


def test_large_networks_that_are_in_use_are_no_impossible_sizes():
    """ViT-H/14 at 518 pixels, and the 21,843 classes of ImageNet-21k."""
    huge = {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 16, "intermediate_size": 5120}
    config = VitMnistConfig(image_size=518, patch_size=14, num_channels=3, num_labels=21_843, **huge)
    with torch.device("meta"):
        parameters = VitMnistForImageClassification(config).num_parameters()
    assert 0.99 < config.num_weights / parameters < 1


@pytest.mark.parametrize("size", [100_000, {"height": 1, "width": 10**9}])
def test_a_processor_of_an_impossible_size_is_refused(size):
    for make in (
        lambda: VitMnistImageProcessor(size=size),
        lambda: PROCESSOR(np.zeros((28, 28)), size=size),
        lambda: VitMnistImageProcessor.from_dict(PROCESSOR.to_dict() | {"size": size}),
    ):
        with pytest.raises(ValueError, match="size must be at most 1024x1024"):
            make()


@pytest.mark.parametrize(
    "flags", [["--num_hidden_layers=1000000"], ["--image_size=100000"], ["--image_size=1024", "--patch_size=1"],
              ["--hidden_size=1000000000"], ["--num_labels=30000000"]],
)  # fmt: skip
def test_impossible_sizes_are_refused_before_images_are_read(flags):
    with pytest.raises(UsageError, match=r"must (be|have) at most"):
        parse_arguments([*QUICK, "--output_dir=x", *flags])


def change_json(name: str, **values):
    def change(folder):
        record = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(record | values))

    return change


def change_weights(change):
    def write(folder):
        save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors")

    return write


def header(length: int, text: bytes = b"{}"):
    return lambda folder: (folder / "model.safetensors").write_bytes(struct.pack("<Q", length) + text)


def of_type(dtype):
    return change_weights(lambda state: {name: tensor.to(dtype) for name, tensor in state.items()})


def pipe(name: str):
    def make(folder):
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return make


MANY = json.dumps({f"a{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(100_000)}).encode()
CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
CHECKPOINTS = {
    "layers": (change_json(CONFIG, num_hidden_layers=10**6), "at most 1000"),
    "classes": (change_json(CONFIG, num_labels=3 * 10**7, id2label=None, label2id=None), "at most 100000"),
    "more weights than are stored": (change_json(CONFIG, hidden_size=4096), "1,850 are stored"),
    "size of images": (change_json(PREPROCESSOR, size={"height": 10**5, "width": 10**5}), "at most 1024"),
    "a limit of its own": (change_json(PREPROCESSOR, max_pixels=10**12), "cannot set max_pixels"),
    "std 0": (change_json(PREPROCESSOR, image_std=[0]), "image_std must be a positive"),
    "std nan": (change_json(PREPROCESSOR, image_std=float("nan")), "image_std must be a positive"),
    "int8": (of_type(torch.int8), "torch.int8"),
    "uint16": (of_type(torch.uint16), "torch.uint16"),
    "bool": (of_type(torch.bool), "torch.bool"),
    "float8": (of_type(torch.float8_e4m3fn), "torch.float8_e4m3fn"),
    "complex": (of_type(torch.complex64), "C64"),
    "nan": (change_weights(lambda state: {**state, "head.bias": torch.full((10,), torch.nan)}), "not finite"),
    "too large for float32": (change_weights(lambda s: {n: t.double() * 1e300 for n, t in s.items()}), "not finite"),
    "a header of exabytes": (header(2**60), "a header of 1,152,921,504,606,846,976 bytes"),
    "a header of many tensors": (header(len(MANY), MANY), "a header of"),
    "a deep record": (lambda folder: (folder / CONFIG).write_text("[" * 100_000), "Cannot read the checkpoint"),
    "a record of 100 MB": (lambda folder: os.truncate(folder / CONFIG, 10**8), "too large"),
    **{
        f"a pipe, {name}": (pipe(name), "pipe or a device")
        for name in ("model.safetensors", PREPROCESSOR, "generation_config.json", "model.safetensors.index.json")
    },
    "a pipe, config.json": (pipe(CONFIG), "config.json is missing"),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_hostile_checkpoint_is_refused(name, tmp_path):
    change, message = CHECKPOINTS[name]
    folder = shutil.copytree(TINY, tmp_path / "checkpoint")
    change(folder)
    with pytest.raises(UsageError, match=message) as refused:
        load_checkpoint(folder)
    assert len(describe_error(refused.value)) < 2_100


STATE = {name.removeprefix("vit."): tensor for name, tensor in load_file(TINY / "model.safetensors").items()}


def expanded(name: str, *shape: int):
    return STATE | {name: torch.zeros([1] * len(shape)).expand(shape)}


class Bytes:
    """A pickle that takes memory."""

    def __reduce__(self):
        return bytearray, (2 * 10**9,)


class Code:
    """A pickle that runs code."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


FILES = {
    "a billion classes": (expanded("head.weight", 10**9, 8), "8,000,000,000 numbers, and fewer are stored"),
    "a billion patches": (expanded("pos_embed", 1, 10**9, 8), "fewer are stored"),
    "a billion channels": (expanded("patch_embed.proj.weight", 8, 10**9, 7, 7), "fewer are stored"),
    "a long bias": (expanded("head.bias", 10**10), "fewer are stored"),
    "a million blocks": (STATE | {f"blocks.{i}.norm1.weight": torch.zeros(1) for i in range(1001)}, "at most 1000"),
    "int8": ({name: tensor.to(torch.int8) for name, tensor in STATE.items()}, "torch.int8"),
    "bool": (STATE | {"head.bias": torch.ones(10, dtype=torch.bool)}, "torch.bool"),
    "complex": (STATE | {"head.bias": torch.ones(10, dtype=torch.complex64)}, "torch.complex64"),
    "infinity": (STATE | {"head.bias": torch.full((10,), torch.inf)}, "not finite"),
    "sparse": (STATE | {"head.weight": STATE["head.weight"].to_sparse()}, "Cannot access storage|Sparse"),
    "a scalar": (STATE | {"head.weight": torch.zeros(())}, "Cannot read the checkpoint"),
    "memory": (STATE | {"x": Bytes()}, "it makes a bytearray"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_pth_file_is_refused(name, tmp_path):
    state, message = FILES[name]
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(UsageError, match=message):
        import_checkpoint(tmp_path / "x.pth")


def test_code_in_a_pickle_does_not_run(tmp_path):
    for name in ("x.pth", "x.pt", "x.bin"):
        torch.save(STATE | {"x": Code(tmp_path / "ran")}, tmp_path / name)
        with pytest.raises(UsageError, match=r"not a \.pth file of plain tensors"):
            import_checkpoint(tmp_path / name)
    folder = shutil.copytree(TINY, tmp_path / "checkpoint")
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "model.pkl"):
        (folder / name).write_bytes(pickle.dumps(Code(tmp_path / "ran")))
    load_checkpoint(folder)  # never opened
    (folder / "model.safetensors").unlink()
    with pytest.raises(UsageError, match="no weights"):
        load_checkpoint(folder)
    assert not (tmp_path / "ran").exists()


def test_a_compressed_pth_file_is_refused(tmp_path):
    """torch would decompress it, whatever its size."""
    torch.save(STATE, tmp_path / "x.pth")
    bomb = zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED)
    with bomb, zipfile.ZipFile(tmp_path / "x.pth") as good:
        for name in good.namelist():
            bomb.writestr(name, good.read(name))
    with pytest.raises(UsageError, match="it is compressed"):
        import_checkpoint(tmp_path / "bomb.pth")


@pytest.mark.parametrize(
    "change",
    [
        {"num_hidden_layers": 10**6}, {"num_labels": 3 * 10**7, "id2label": None, "label2id": None},
        {"hidden_size": 2**14, "num_hidden_layers": 1000}, {"image_size": [10**6, 10**6]},
    ],
)  # fmt: skip
def test_a_hostile_folder_of_another_library_is_refused(change, tmp_path):
    model, processor = load_checkpoint(TINY)
    export_vit(model, processor, tmp_path)
    change_json(CONFIG, **change)(tmp_path)
    with pytest.raises(UsageError, match=r"at most|are stored"):
        import_checkpoint(tmp_path)


# Images


def encoded(image: PIL.Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_of(width: int, height: int) -> bytes:
    """A PNG file that says it has so many pixels."""
    parts = [b"\x89PNG\r\n\x1a\n"]
    for name, data in ((b"IHDR", struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0)), (b"IDAT", zlib.compress(b"\0"))):
        parts.append(struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)))
    return b"".join(parts)


@pytest.mark.parametrize("kind", ["PNG", "GIF", "TIFF", "WEBP", "BMP", "JPEG", "PPM"])
def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(kind, monkeypatch):
    content = encoded(DIGIT, kind)
    assert open_image(content, max_pixels=28 * 28).size == (28, 28)
    monkeypatch.setattr(PIL.ImageFile.ImageFile, "load", None)  # decoding would now fail in another way
    with pytest.raises(ValueError, match="holds an image of 28x28 pixels, more than max_pixels=783: raise it"):
        open_image(content, max_pixels=28 * 28 - 1)


def test_the_limit_of_pixels_is_one_of_the_processor_and_is_not_saved(tmp_path):
    huge = png_of(13_000, 13_000)
    assert MAX_IMAGE_PIXELS < 13_000**2 and PIL.Image.MAX_IMAGE_PIXELS == 89_478_485  # Pillow's own is unchanged
    with pytest.raises(ValueError, match="13000x13000 pixels, more than max_pixels=67108864"):
        PROCESSOR(huge)
    with pytest.raises(ValueError, match=r"\(20000, 20000\)|20000x20000"):
        PROCESSOR(np.broadcast_to(np.uint8(0), (20_000, 20_000)))
    small, image = VitMnistImageProcessor(max_pixels=100), encoded(DIGIT, "PNG")
    for call in (lambda: small(image), lambda: small(DIGIT), lambda: PROCESSOR(image, max_pixels=100)):
        with pytest.raises(ValueError, match="28x28 pixels, more than max_pixels=100"):
            call()
    small(image, max_pixels=28 * 28)
    small.save_pretrained(tmp_path)
    assert "max_pixels" not in json.loads((tmp_path / PREPROCESSOR).read_text())
    assert VitMnistImageProcessor.from_pretrained(tmp_path, max_pixels=100).max_pixels == 100
    VitMnistImageProcessor.from_pretrained(tmp_path)(image)


def test_more_pixels_than_pillow_allows_can_be_asked_for():
    """Pillow's own limit can be lifted for the whole process only."""
    with pytest.raises(ValueError, match="damaged"):  # by now, the missing pixels are the problem
        open_image(png_of(20_000, 20_000), max_pixels=20_000**2)


def with_text(size: int) -> bytes:
    text = PngInfo()
    text.add_text("comment", "x" * size, zip=True)
    return encoded(DIGIT, "PNG", pnginfo=text)


def icon_of(content: bytes) -> bytes:
    entry = struct.pack("<4B2H2I", 0, 0, 0, 0, 1, 32, len(content), 22)
    return struct.pack("<3H", 0, 1, 1) + entry + content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (with_text(20_000_000), "damaged image: Decompressed data too large"),
        (icon_of(png_of(9_000, 9_000)), "no image that Pillow can read"),  # it would be decoded to find its size
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 28 28\n", "no image that Pillow can read"),  # Ghostscript runs
        (encoded(DIGIT, "PNG")[:80], "damaged image"),
        (b"", "no image that Pillow can read"),
    ],
    ids=["text", "icon", "PostScript", "cut off", "empty"],
)
def test_images_that_take_memory_or_programs_are_refused(content, message):
    with pytest.raises(ValueError, match=message):
        PROCESSOR(content)


@pytest.mark.costs
def test_only_the_first_image_of_an_animation_is_read():
    frames = [PIL.Image.new("L", (500, 500), level) for level in range(1, 200)]
    content = encoded(DIGIT, "GIF", save_all=True, append_images=frames)
    started = time.process_time()
    assert open_image(content).size == (500, 500) or open_image(content).size == (28, 28)
    assert time.process_time() - started < 0.5


def test_files_that_are_not_regular_are_never_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", "/dev/zero", str(tmp_path / "pipe.png")):
        with pytest.raises(ValueError, match="is a pipe or a device, not a regular file"):
            PROCESSOR(path)
    (tmp_path / "huge.webp").write_bytes(b"RIFF\xff\xff\xff\x7fWEBPVP8 ")
    os.truncate(tmp_path / "huge.webp", 10**12)
    with pytest.raises(ValueError, match="too large for an image"):
        PROCESSOR(tmp_path / "huge.webp")


def test_a_server_that_sends_without_end_is_refused():
    class Endless(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            try:
                while True:
                    self.wfile.write(bytes(2**16))
            except OSError:
                pass

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Endless)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        with pytest.raises(ValueError, match="too large for an image of max_pixels=1000"):
            open_image(f"http://127.0.0.1:{server.server_port}/7.png", max_pixels=1000)
    finally:
        server.shutdown()
        server.server_close()


def test_the_flag_limits_images_of_files_and_datasets(tmp_path, run_script):
    place = tmp_path / "data" / "test" / "7"
    other = tmp_path / "data" / "test" / "3"
    for folder in (place, other):
        folder.mkdir(parents=True)
        DIGIT.resize((100, 100)).save(folder / "a.png")
    for images in (["--image", place / "a.png"], ["--dataset_name", tmp_path / "data", "--num_samples=0"]):
        done = run_script("run_inference.py", *images, "--max_pixels=9999")
        assert done.code == 2 and "100x100 pixels, more than --max_pixels 9999" in done.err
        assert run_script("run_inference.py", *images, "--max_pixels=10000").code == 0


# Files of datasets, recipes


@pytest.fixture
def classes(tmp_path):
    """A folder of images in two class folders."""
    for name in "37":
        (tmp_path / "data" / "test" / name).mkdir(parents=True)
        DIGIT.save(tmp_path / "data" / "test" / name / "a.png")
    return tmp_path / "data"


def load(folder):
    return load_images(DataArguments(dataset_name=str(folder)), VitMnistImageProcessor(), ["test"])["test"]


@pytest.mark.parametrize(
    "name", ["test/7/b.png", "metadata.csv", "test/x.parquet", "README.md", "t10k-images-idx3-ubyte"]
)
def test_a_pipe_in_a_dataset_is_refused_by_name(classes, name):
    os.mkfifo(classes / name)
    with pytest.raises(UsageError, match=rf"{name} is a pipe or a device"):
        load(classes)


def test_a_pipe_in_a_saved_dataset_or_named_by_a_table_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    table = {"image": [str(tmp_path / "pipe.png")], "label": [0]}
    datasets.DatasetDict(test=datasets.Dataset.from_dict(table)).save_to_disk(tmp_path / "saved")
    with pytest.raises(UsageError, match=r"Cannot read .*pipe\.png: .*not a regular file"):
        load(tmp_path / "saved")
    arrow = next((tmp_path / "saved").rglob("*.arrow"))
    arrow.unlink()
    os.mkfifo(arrow)
    with pytest.raises(UsageError, match=r"\.arrow is a pipe or a device"):
        load(tmp_path / "saved")


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_an_idx_file_of_impossible_size_is_refused(tmp_path, suffix):
    for name, sizes in (("images-idx3", (10**9, 28, 28)), ("labels-idx1", (10**9,))):
        content = struct.pack(f">HBB{len(sizes)}I", 0, 8, len(sizes), *sizes) + bytes(1000)
        content = gzip.compress(content) if suffix else content
        (tmp_path / f"t10k-{name}-ubyte{suffix}").write_bytes(content)
    with pytest.raises(UsageError, match="is no IDX file: it would have 784,000,000,016 bytes"):
        load(tmp_path)


BOMB = "a0: &a0 [" + ", ".join(["x"] * 10) + "]\n"
BOMB += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10))


def test_a_dataset_card_of_a_billion_values_is_ignored(classes, caplog):
    (classes / "README.md").write_text(f"---\n{BOMB}---\n")
    assert len(load(classes)) == 2 and "holds more than 100,000 values" in caplog.text


RECIPES = {
    "aliases": (f"report_to: &r [x]\n{BOMB}optim_args: *a9\n", "more than 100,000 values"),
    "an alias of itself": ("report_to: &a [*a]\n", "more than 100,000 values"),
    "nesting": ("a: " + "[" * 10_000, "recursion|Cannot read"),
    "length": ("# " + "x" * 10**6, "too large"),
    "a tag": ("seed: !!python/object/apply:os.system [ls]\n", "Cannot read"),
    "a long number": ("seed: " + "9" * 5000, "Cannot read"),
}


@pytest.mark.costs  # up to 1.5 s, until the parser has had enough
@pytest.mark.parametrize("name", RECIPES)
def test_a_hostile_recipe_is_refused(name, tmp_path):
    text, message = RECIPES[name]
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(UsageError, match=message) as refused:
        parse_arguments(["--recipe", str(tmp_path / "x.yaml"), "--output_dir=x"])
    assert len(describe_error(refused.value)) < 2_100


def test_a_recipe_that_is_no_regular_file_is_refused(tmp_path, run_script):
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "child.yaml").write_text("base: pipe.yaml\n")
    for path in (tmp_path / "pipe.yaml", "/dev/zero", tmp_path / "child.yaml"):
        done = run_script("run_train.py", "--recipe", path, "--output_dir", tmp_path / "run")
        assert done.code == 2 and "is a pipe or a device" in done.err and done.err.count("\n") == 1


# Names

NAMES = ["=cmd|' C'!A0", "+1+1", "-1+1", "@SUM(1)", "\x1b[31mred", "two\nlines", "\u202egnp.exe", "<img src=x>", "ok"]


def is_harmless(text: str) -> bool:
    return all(line.isprintable() for line in text.split("\n"))


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_names_of_files_are_text_everywhere(suffix, tmp_path, run_script, monkeypatch):
    (tmp_path / "images").mkdir()
    monkeypatch.chdir(tmp_path / "images")
    for name in NAMES:
        DIGIT.save(f"{name}.png")
    with open(b"bytes\xff.png", "wb") as file:  # no UTF-8
        file.write(encoded(DIGIT, "PNG"))
    output = tmp_path / f"out{suffix}"
    done = run_script("run_inference.py", "--image", ".", "--output", output, "--model", TINY)
    assert done.code == 0 and is_harmless(done.out) and is_harmless(done.err)
    assert r"bytes\udcff.png Pred:7" in done.out and r"two\nlines.png Pred:7" in done.out
    if suffix == ".csv":
        text = output.read_text(encoding="utf-8")
        assert is_harmless(text) and len(text.splitlines()) == 1 + 10
        found = pandas.read_csv(output)["image"].tolist()
        assert not [name for name in found if name[0] in "=+-@"] and r"two\nlines.png" in found
    elif suffix == ".jsonl":
        found = [json.loads(line)["image"] for line in output.read_text(encoding="ascii").splitlines()]
        assert {f"{name}.png" for name in NAMES} | {r"bytes\udcff.png"} == set(found)
    else:
        found = pyarrow.parquet.read_table(output)["image"].to_pylist()
        assert {f"{name}.png" for name in NAMES} | {r"bytes\udcff.png"} == set(found)


def test_numbers_are_no_formulas():
    assert [csv_cell(text) for text in ("-1", "+2.5", "7", "-", "-1+1", " =1", "\t=1")] == [
        "-1", "+2.5", "7", "'-", "'-1+1", "' =1", "\\t=1"
    ]  # fmt: skip


@pytest.mark.costs
def test_names_of_classes_and_datasets_are_text_everywhere(tmp_path, run_script):
    """From the folders of a dataset to the terminal, the log, the card, and an export of the checkpoint."""
    names = [name for name in NAMES if name != "<img src=x>"] + ["<b>", "[a](http:b)"]
    names = [name.replace("/", "") for name in names]
    for index, name in enumerate(names):
        folder = tmp_path / "data \x1b[32m" / "train" / name
        folder.mkdir(parents=True)
        for copy in range(12):
            picture = np.asarray(DIGIT).copy()
            picture[index, copy] = 99
            PIL.Image.fromarray(picture).save(folder / f"{copy}.png")
    run = tmp_path / "run <b>"
    flags = ["--dataset_name", tmp_path / "data \x1b[32m"]
    done = run_script("run_train.py", *QUICK, *flags, "--num_train_epochs=1", "--output_dir", run)
    assert done.code == 0, done.err
    assert "\x1b" not in done.out + done.err.replace("\x1b[A", "")
    card = (run / "README.md").read_text(encoding="utf-8")
    body = card.split("---\n", 2)[2]
    assert is_harmless(body) and r"\<b\>" in body and "<b>" not in body and "](http:b)" not in body.replace("\\](", "")
    done = run_script("run_inference.py", *flags, "--model", run, "--num_samples=0", "--output", tmp_path / "x.csv")
    assert done.code == 0 and is_harmless(done.out) and "\x1b" not in done.err
    assert is_harmless((tmp_path / "x.csv").read_text(encoding="utf-8"))
    done = run_script("run_export.py", "--format", "vit", "--model", run, "--output", tmp_path / "exported")
    assert done.code == 0 and "<b>" not in (tmp_path / "exported" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("place", ["", "test", "test/7", "test/7/a.png"])
def test_undecodable_names_of_a_dataset_work(place, streaming, classes):
    renamed = (classes / place).with_name(os.fsdecode(b"test-\xff.png"))
    os.rename(classes / place, renamed)
    options = DataArguments(dataset_name=str(classes if place else renamed), streaming=streaming)
    loaded = load_raw(options)[0]["test"]
    assert loaded.features["label"].names == ["3", "test-%FF.png" if place == "test/7" else "7"]
    assert [example["label"] for example in loaded] == [0, 1]
    assert all(example["image"].size == (28, 28) for example in loaded)


@pytest.mark.parametrize("kind", ["parquet", "csv", "saved", "idx"])
def test_undecodable_names_of_tables_work(kind, tmp_path):
    folder = tmp_path / os.fsdecode(b"\xff")
    folder.mkdir()
    table = datasets.Dataset.from_dict({"image": [DIGIT] * 2, "label": [3, 7]}).cast_column("image", datasets.Image())
    if kind == "parquet":
        table.to_parquet(tmp_path / "x")
        os.rename(tmp_path / "x", folder / os.fsdecode(b"test-\xfe.parquet"))
    elif kind == "csv":
        os.mkdir(folder / "test")
        for name in "ab":
            DIGIT.save(folder / "test" / f"{name}.png")
        (folder / "test" / "metadata.csv").write_text("file_name,label\na.png,3\nb.png,7\n")
    elif kind == "saved":
        datasets.DatasetDict(test=table).save_to_disk(tmp_path / "x")
        os.replace(tmp_path / "x", folder)
    else:
        header = bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 28, 0, 0, 0, 28])
        (folder / "t10k-images-idx3-ubyte").write_bytes(header + bytes(2 * 28 * 28))
        (folder / "t10k-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 2, 3, 7]))
    assert len(load(folder)) == 2


def test_a_message_has_an_end():
    assert len(describe_error(UsageError("x" * 10**6))) < 2_100


# Secrets

TOKEN = "hf_thisIsASecretOfTheUser"


@pytest.mark.costs
def test_a_token_is_never_on_the_disk(tmp_path, monkeypatch):
    """And the run resumes with the token given again, another one, or none."""
    stop_after(2, monkeypatch)
    with pytest.raises(Stop):
        train(*arguments(tmp_path, f"--hub_token={TOKEN}", "--keep_checkpoints=yes"))
    monkeypatch.undo()
    assert (tmp_path / "checkpoint-8" / "training_args.bin").is_file()
    resumed = arguments(tmp_path, f"--hub_token={TOKEN}", "--keep_checkpoints=yes")
    assert resumed[-1].hub_token == TOKEN
    train(*resumed)
    assert (tmp_path / "all_results.json").is_file()
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 10 and not [path for path in written if TOKEN.encode() in path.read_bytes()]
    assert TOKEN not in str(resumed[-1]) and TOKEN not in resumed[-1].to_json_string()


@pytest.mark.costs
@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_code_in_a_training_checkpoint_does_not_run(name, tmp_path, monkeypatch):
    """What resuming reads, it reads with `weights_only`."""
    stop_after(2, monkeypatch)
    with pytest.raises(Stop):
        train(*arguments(tmp_path / "run"))
    monkeypatch.undo()
    for checkpoint in (tmp_path / "run").glob("checkpoint-*"):
        torch.save({"x": Code(tmp_path / "ran")}, checkpoint / name)
        (checkpoint / "training_args.bin").write_bytes(pickle.dumps(Code(tmp_path / "ran")))
    try:
        train(*arguments(tmp_path / "run"))
    except Exception as error:
        assert "weights" in str(error).lower() or isinstance(error, (UsageError, OSError))
    assert not (tmp_path / "ran").exists()


def test_the_policy_names_these_tests():
    policy = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    assert "tests/test_hostile_inputs.py" in policy and "tests/test_fuzzing.py" in policy
    assert not list(SAMPLE.glob("*.pkl"))
