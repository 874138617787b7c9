"""What is checked of a checkpoint before it is loaded: kinds of files, types, numbers and shapes of weights."""

import mmap
import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from transformers.modeling_utils import _get_resolved_checkpoint_files, load_state_dict

from ..cli.errors import UsageError
from ..cli.inputs import MAX_RECORD_BYTES, check_regular
from ..configuration_vit_mnist import MAX_PARAMETERS, VitMnistConfig

# The types of weights that the model computes in.
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
MAX_HEADER_BYTES = 2**22  # in a safetensors file: names, types and shapes of 1,000 blocks take half of it
MAX_MISSING = 10**7  # weights that are missing, before memory is taken for them


def check_dtypes(
    name: str, config: dict[str, Any], location: dict[str, Any], variant: str | None = None,
    use_safetensors: bool | None = None,
) -> int:  # fmt: skip
    """The number of weights in whatever files `from_pretrained` reads. Raises [`UsageError`] if they are not floats of
    16 bits or more: transformers would cast integers silently, without the scale that a quantizer has divided by."""
    files, _ = _get_resolved_checkpoint_files(
        pretrained_model_name_or_path=name, variant=variant, gguf_file=None, use_safetensors=use_safetensors,
        user_agent=None, is_remote_code=True,  # for which the Hub's bot is not asked to convert the weights
        transformers_explicit_filename=config.get("transformers_weights"), download_kwargs=location,
    )  # fmt: skip
    num_weights = 0
    for file in files or ():
        check_header(file)
        for key, tensor in load_state_dict(file, map_location="meta").items():
            if tensor.dtype not in FLOATS:
                kinds = ", ".join(map(str, FLOATS))
                raise UsageError(f"The weights in {name} are of type {tensor.dtype} ({key}), not one of {kinds}.")
            num_weights += tensor.numel()
    return num_weights


def check_files(folder: Path) -> None:
    """Raise [`UsageError`] if a file in a checkpoint folder is a pipe or a device, or a record of impossible size."""
    for path in sorted(folder.iterdir()):
        check_regular(path)
        if path.suffix == ".json" and path.is_file() and path.stat().st_size > MAX_RECORD_BYTES:
            raise UsageError(f"{path} is too large: more than {MAX_RECORD_BYTES:,} bytes.")


def check_header(path: str | os.PathLike) -> None:
    """Raise [`UsageError`] for a file of weights that would take more memory than it has bytes: a safetensors file
    with a header longer than that of any network here, or a compressed `.pth` file or one that asks for memory, which
    torch never writes. Pipes and devices are refused, too."""
    check_regular(path)
    if not os.access(path, os.R_OK) or os.path.isdir(path) or not os.path.getsize(path):
        return
    problem = None
    with open(path, "rb") as file:
        if str(path).endswith(".safetensors"):
            length = int.from_bytes(file.read(8), "little")
            problem = f"it has a header of {length:,} bytes" if length > MAX_HEADER_BYTES else None
        else:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                problem = "it makes a bytearray" if content.find(b"\nbytearray\n") >= 0 else None
            if zipfile.is_zipfile(file):
                with zipfile.ZipFile(file) as archive:
                    is_compressed = any(item.compress_type != zipfile.ZIP_STORED for item in archive.infolist())
                    problem = "it is compressed" if is_compressed else problem
    if problem:
        raise UsageError(f"Cannot read the weights in {path}: {problem}, as no network of this kind does.")


def check_num_weights(name: str, found: int, config: VitMnistConfig) -> None:
    """Raise [`UsageError`] if files hold more weights than any network may have, or far fewer than the config asks
    for: transformers would take the memory before it says so."""
    if found > MAX_PARAMETERS or config.num_weights > found + MAX_MISSING:
        raise UsageError(
            f"The weights in {name} do not match its config.json: {found:,} are stored, for a network of "
            f"{config.num_weights:,} or a little more."
        )


def check_shapes(name: str, info: dict[str, Any]) -> None:
    """Raise [`UsageError`] if the loading info of transformers names weights of another shape than the model's."""
    for key, found, expected in sorted(info["mismatched_keys"]):
        shapes = f"{key} has the shape {tuple(found)}, not {tuple(expected)}"
        raise UsageError(f"The weights in {name} do not match its config.json: {shapes}.")
