"""Random damage to whatever a stranger can hand over: each input is read, or refused in one sentence.

`VIT_MNIST_FUZZ=5000 python -m pytest tests/test_fuzzing.py` tries so many inputs per test, at random. By default a few
are tried, always the same."""

import io
import json
import os
import shutil
import struct

import numpy as np
import PIL.Image
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from modeling_vit_mnist import VitMnistConfig, VitMnistForImageClassification, VitMnistImageProcessor
from modeling_vit_mnist.checkpoints.convert import import_checkpoint
from modeling_vit_mnist.checkpoints.folder import load_checkpoint
from modeling_vit_mnist.cli.errors import UsageError, describe_error
from modeling_vit_mnist.data.arguments import DataArguments
from modeling_vit_mnist.data.splits import load_images
from modeling_vit_mnist.training.arguments import parse_arguments

from .conftest import ROOT, SAMPLE, TINY

hypothesis = pytest.importorskip("hypothesis", reason="needs hypothesis: pip install hypothesis")
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from hypothesis.extra import numpy as st_numpy  # noqa: E402

WANTED = int(os.environ.get("VIT_MNIST_FUZZ", 0))


def tries(default: int):
    """Settings of a test: `default` inputs, always the same, or as many random ones as VIT_MNIST_FUZZ says."""
    return settings(
        max_examples=WANTED or default, derandomize=not WANTED, deadline=None, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip


def read_or_refused(read, refusals: tuple = (ValueError, TypeError)):
    """What `read` returns; `None` if it raises one of the `refusals` with one sentence."""
    try:
        return read()
    except refusals as error:
        message = describe_error(error)
        assert len(message) > 15 and "\n" not in message and "\x1b" not in message and len(message) < 3000
        return None


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder for the files of this module, each of which is written again and again."""
    return tmp_path_factory.mktemp("fuzzing")


# What is not the value that a setting asks for.
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-3, 40), st.floats(), st.text(max_size=8), st.just(10**400),
    st.sampled_from([0, -1, 28, 1e-400, 2**31, 2**63, 10**9, "28", "\x1b[31m", "auto", "yes", "../x", "\ud800"]),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


def damaged(contents: list[bytes]):
    """One of the contents with some bytes replaced, cut off, repeated or inserted."""

    def change(content: bytes, changes: list) -> bytes:
        for kind, where, data in changes:
            at = int(where * len(content))
            if kind == "replace":
                content = content[:at] + data + content[at + len(data) :]
            elif kind == "insert":
                content = content[:at] + data + content[at:]
            elif kind == "cut":
                content = content[:at]
            else:
                content = content[:at] + content[at // 2 :]
        return content[:2_000_000]

    kinds = st.sampled_from(["replace", "replace", "insert", "cut", "repeat"])
    changes = st.tuples(kinds, st.floats(0, 1), st.binary(min_size=1, max_size=8))
    # Most formats begin with sizes, where a few bytes decide about memory.
    early = st.tuples(st.just("replace"), st.floats(0, 0.1), st.binary(min_size=1, max_size=8))
    return st.builds(change, st.sampled_from(contents), st.lists(changes | early, min_size=1, max_size=4))


def encodings() -> list[bytes]:
    picture = PIL.Image.open(TINY / "digit-7.png")
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    found = []
    for kind, mode in [
        ("PNG", "L"), ("PNG", "RGBA"), ("PNG", "P"), ("PNG", "I;16"), ("JPEG", "RGB"), ("GIF", "P"), ("TIFF", "L"),
        ("TIFF", "F"), ("WEBP", "RGBA"), ("BMP", "RGB"), ("PPM", "L"), ("TGA", "L"), ("JPEG2000", "L"),
        ("PCX", "L"), ("SGI", "L"), ("DDS", "RGBA"), ("ICNS", "RGBA"), ("IM", "L"), ("MSP", "1"), ("QOI", "RGB"),
    ]:  # fmt: skip
        file = io.BytesIO()
        options = {"exif": exif} if kind in ("JPEG", "WEBP", "TIFF") else {}
        if kind == "TIFF":
            options["compression"] = "tiff_lzw"
        try:
            picture.convert(mode).save(file, kind, **options)
        except (ValueError, OSError, KeyError):  # not with this version of Pillow
            continue
        found.append(file.getvalue())
    assert len(found) > 12
    return found


PROCESSOR = VitMnistImageProcessor(do_frame=True)


def assert_pixels(pixels) -> None:
    assert pixels is None or (pixels.ndim == 4 and pixels.shape[1] == 1 and np.isfinite(pixels).all())


@tries(80)
@given(damaged(encodings()))
def test_damaged_images(content):
    assert_pixels(read_or_refused(lambda: PROCESSOR(content, return_tensors="np").pixel_values))


ARRAYS = st_numpy.arrays(
    st.one_of(
        st_numpy.boolean_dtypes(), st_numpy.integer_dtypes(), st_numpy.unsigned_integer_dtypes(),
        st_numpy.floating_dtypes(), st_numpy.complex_number_dtypes(), st.just(np.dtype("U3")),
        st.just(np.dtype("datetime64[s]")),
    ),
    st_numpy.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=6),
)  # fmt: skip
OPTIONS = sorted(VitMnistImageProcessor.valid_kwargs.__annotations__)


@tries(80)
@given(ARRAYS, st.dictionaries(st.sampled_from([name for name in OPTIONS if name.startswith("do_")]), st.booleans()))
def test_arrays_of_any_kind(array, options):
    read = lambda: PROCESSOR(array, return_tensors="np", **options).pixel_values  # noqa: E731
    assert_pixels(read_or_refused(read))


@tries(80)
@given(st.dictionaries(st.sampled_from(OPTIONS) | st.text(max_size=6), VALUES, max_size=4))
def test_options_of_the_processor(options):
    refusals = (ValueError, TypeError, StrictDataclassError)
    processor = read_or_refused(lambda: VitMnistImageProcessor.from_dict(dict(options)), refusals)
    if processor is not None:
        assert_pixels(
            read_or_refused(lambda: processor(np.eye(28), do_frame=True, return_tensors="np").pixel_values, refusals)
        )
    known = {name: value for name, value in options.items() if name in OPTIONS and name != "return_tensors"}
    read_or_refused(lambda: PROCESSOR(np.eye(28), **known), refusals)


FIELDS = VitMnistConfig._settings()


@tries(80)
@given(st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=6), VALUES, max_size=4))
def test_configs(fields):
    refusals = (ValueError, TypeError, StrictDataclassError)
    config = read_or_refused(lambda: VitMnistConfig(**fields), refusals)
    read_or_refused(lambda: VitMnistConfig.from_dict({"model_type": "vit_mnist", **fields}), refusals)
    if config is not None and config.num_weights < 10**5:
        VitMnistForImageClassification(config)


def split_safetensors() -> tuple[dict, bytes]:
    content = (TINY / "model.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


HEADER, DATA = split_safetensors()


@tries(15)
@given(st.data())
def test_headers_of_safetensors_files(place, data):
    header = {name: dict(entry) for name, entry in HEADER.items()}
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(sorted(header)))
        part = data.draw(st.sampled_from(["dtype", "shape", "data_offsets", "name"]))
        value = data.draw(
            {
                "dtype": st.sampled_from(["I8", "BOOL", "F8_E4M3", "C64", "F64", "F16", "U64", "F4", "?"]),
                "shape": st.lists(st.sampled_from([0, 1, 8, 10, 10**9, 2**63, 2**64, -1, 0.5]), max_size=4),
                "data_offsets": st.lists(st.sampled_from([0, 32, 2**32, 2**64, -1]), min_size=1, max_size=3),
            }.get(part, st.just(None))
            | VALUES
        )
        entry = header[name]
        is_whole = part == "name" or not isinstance(entry, dict)
        header[name] = value if is_whole else entry | {part: value}
    text = json.dumps(header).encode()
    length = data.draw(st.sampled_from([len(text), len(text) + 1, 0, 2**20, 2**63, 2**64 - 1]) | st.just(len(text)))
    folder = shutil.copytree(TINY, place / "headers", dirs_exist_ok=True)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", length) + text + DATA)
    read_or_refused(lambda: load_checkpoint(folder), (UsageError,))


@tries(15)
@given(damaged([(TINY / name).read_bytes() for name in ("config.json", "preprocessor_config.json")]))
def test_damaged_records_of_a_checkpoint(place, content):
    folder = shutil.copytree(TINY, place / "records", dirs_exist_ok=True)
    name = "preprocessor_config.json" if b"image_mean" in content else "config.json"
    (folder / name).write_bytes(content)
    read_or_refused(lambda: load_checkpoint(folder), (UsageError,))


def pth() -> bytes:
    file = io.BytesIO()
    state = load_checkpoint(TINY)[0].state_dict()
    torch.save({name.removeprefix("vit."): tensor for name, tensor in state.items()}, file)
    return file.getvalue()


@tries(25)
@given(damaged([pth()]))
@pytest.mark.filterwarnings("ignore")
def test_damaged_pth_files(place, content):
    (place / "x.pth").write_bytes(content)
    read_or_refused(lambda: import_checkpoint(place / "x.pth"), (UsageError,))


RECIPES = [path.read_bytes() for path in sorted((ROOT / "configs").glob("*.yaml"))]
RECIPES += [b"a: &a [1, 2]\nb: [*a, *a]\nc: !!python/object:os.system x\n", b'{"seed": 1, "lr": {"a": [1e400]}}']


@tries(40)
@given(damaged(RECIPES))
def test_damaged_recipes(place, content):
    (place / "x.yaml").write_bytes(content)
    read_or_refused(lambda: parse_arguments(["--recipe", str(place / "x.yaml"), "--output_dir=x"]), (UsageError,))


KEYS = st.sampled_from(["seed", "learning_rate", "output_dir", "hidden_size", "lr_scheduler_kwargs", "base", "bf16"])


@tries(30)
@given(st.dictionaries(KEYS | st.text(max_size=6), VALUES, max_size=4))
def test_recipes_of_other_values(place, values):
    (place / "values.yaml").write_text(json.dumps(values))
    read_or_refused(lambda: parse_arguments(["--recipe", str(place / "values.yaml"), "--output_dir=x"]), (UsageError,))


def idx() -> list[bytes]:
    images = np.zeros((20, 28, 28), np.uint8)
    return [
        struct.pack(">HBB3I", 0, 8, 3, *images.shape) + images.tobytes(),
        struct.pack(">HBBI", 0, 8, 1, 20) + bytes(20),
    ]


@tries(15)
@given(damaged([idx()[0]]), damaged([idx()[1]]))
def test_damaged_idx_files(place, images, labels):
    folder = place / "idx"
    folder.mkdir(exist_ok=True)
    (folder / "t10k-images-idx3-ubyte").write_bytes(images)
    (folder / "t10k-labels-idx1-ubyte").write_bytes(labels)
    args = DataArguments(dataset_name=str(folder))
    read_or_refused(lambda: load_images(args, VitMnistImageProcessor(), ["test"]), (UsageError,))


@tries(8)
@given(damaged([(SAMPLE / "README.md").read_bytes(), b"---\na: &a [x]\nb: [*a, *a]\n---\n"]))
@pytest.mark.filterwarnings("ignore")
def test_damaged_dataset_cards(place, content):
    from modeling_vit_mnist.data.folders import _read_card

    (place / "README.md").write_bytes(content)
    read_or_refused(lambda: _read_card(place), (UsageError,))
