"""Predictions of a whole split as a folder of parquet parts, for several processes and for runs that were cut off.

A part holds whole files of the dataset, or a range of its images. It is the same for any number of processes, so a
second start, with more or fewer of them, does exactly what is left."""

import hashlib
import json
import logging
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import fields, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import huggingface_hub
import pyarrow
import pyarrow.parquet
import torch
import torch.distributed as dist
from tqdm.auto import tqdm

from ..checkpoints.record import warn_of_other_split
from ..checkpoints.settings import BASE_FIELDS, UNUSED
from ..cli.errors import UsageError, printable
from ..cli.files import locked, replacing, write_text
from ..data.arguments import DEFAULT_DATASET, DataArguments
from ..data.folders import list_files
from ..data.images import ImageDataset
from ..data.splits import fingerprint, stream_images
from ..data.streaming import ALL_HASHES, CHUNK, MIN_PARTS, ImageStream
from ..image_processing_vit_mnist import VitMnistImageProcessor
from .arguments import InferenceArguments
from .classes import Tally, match_classes
from .predict import (
    Classifier,
    check_apart,
    choose_device,
    dataset_folders,
    load_classifier,
    open_split,
    print_prediction,
    to_arrow,
    with_rows,
)

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
METADATA = b"vit_mnist"  # key in the metadata of a part: the run that it belongs to, and its counts
ROW_GROUP = 50_000
COLUMNS = ["part", "index", "label", "problem", "prediction", "probability", "digit_score"]
# Arguments that do not change the predictions of a part, and those that the manifest records in another form.
NOT_RECORDED = {"model", "device", "output", "grid", "quiet", "batch_size", "image", "reject", "dataset_name"}


def predict_parts(args: InferenceArguments, data_args: DataArguments) -> None:
    """Predict a split into the folder `args.output`, with all processes of the launch. Print one summary that counts
    each image once.

    Raises [`UsageError`] for arguments that do not go together, and for a folder that holds something else, or the
    parts of another checkpoint, dataset or other flags."""
    for name in ("image", "grid"):
        if getattr(args, name):
            raise UsageError(f"--{name} does not go with the folder --output {args.output}: name a file there.")
    folder = Path(args.output)
    check_apart(folder, dataset_folders(data_args))
    rank, num_processes = start_processes()
    if num_processes > 1 and (device := choose_device(args.device)).type != "cpu" and device.index is None:
        local_rank = int(os.environ.get("LOCAL_RANK", rank))
        args = replace(args, device=f"{device.type}:{local_rank % torch.accelerator.device_count()}")
    classifier = load_classifier(args, data_args.max_pixels)
    source = open_source(args, data_args, classifier.processor)
    if rank == 0:
        warn_of_other_split(args.model, args.split, source, data_args)
    numbers, names = match_classes(source.names, classifier.names)
    if isinstance(source, ImageStream):
        num_parts, advice = source.num_parts, ": split its files, or leave out --streaming"
    else:
        num_parts, advice = min(MIN_PARTS, math.ceil(len(source) / CHUNK)), ""
    if rank == 0 and num_parts < num_processes:
        logger.warning("The split has fewer parts than processes, %d of %d%s.", num_parts, num_processes, advice)

    def chunks(part: int) -> Iterable[ImageDataset]:
        if isinstance(source, ImageStream):
            return source.part(part).chunks()
        ends = [len(source) * end // num_parts for end in (part, part + 1)]
        return [source.select(slice(*ends))]

    with ExitStack() as stack:

        def open_folder() -> tuple[dict, dict[int, Tally]]:
            stack.enter_context(locked(folder))
            run = describe_run(args, data_args, classifier, source, num_parts)
            return run, prepare_folder(folder, run)

        run, tallies = _from_main(open_folder)
        if (hash_checkpoint(classifier), num_parts) != (run["checkpoint"], run["parts"]):
            raise UsageError(f"Process {rank} has another copy of the checkpoint or the dataset than process 0.")
        left = [part for part in range(num_parts) if part not in tallies]
        if rank == 0:
            print(f"Parts: {num_parts:,}" + (f", {len(tallies):,} of them finished before" if tallies else ""))
        logging.getLogger("modeling_vit_mnist").setLevel(logging.NOTSET)  # from here on, each has its own images
        started, done = time.perf_counter(), {}
        mine = left[rank::num_processes]
        for part in tqdm(mine, desc="Predict", unit=" parts", leave=False, disable=True if rank else None):
            batches = with_rows(chunks(part), numbers, names)
            done[part] = write_part(folder, part, run, classifier, batches, names, args.quiet is not False)
        gathered = _gather(done)
        seconds = time.perf_counter() - started
        if rank == 0:
            tallies |= {part: tally for each in gathered for part, tally in each.items()}
            total = write_summary(folder, run, tallies)
            what = printable(f"{args.split} images of {source.source}")
            if total.images == 0:
                raise UsageError(f"There are no {what}.")
            end = total.describe_others()
            if left:
                rate = sum(tallies[part].images for part in left) / seconds
                several = f"{num_processes} processes, each " if num_processes > 1 else ""
                end.append(f"{rate:,.0f} images/s on {several}{classifier.model.device}")
            print(", ".join([total.describe_accuracy(f"accepted {what}" if total.is_selective else what), *end]))
            print(f"Wrote {printable(args.output)}")
    if dist.is_initialized():
        dist.destroy_process_group()


def open_source(
    args: InferenceArguments, data_args: DataArguments, processor: VitMnistImageProcessor
) -> ImageDataset | ImageStream:
    """The split, as a stream, so that each process decodes only its parts. In memory, without `--streaming`, are the
    first images of a split, and a split that is taken from another one by class. Raises [`UsageError`] for the first
    images of a stream."""
    limit = args.num_samples or data_args.limit(args.split)
    if limit and data_args.streaming:
        raise UsageError(
            f"The folder --output {args.output} takes all images of a stream: leave out --num_samples and "
            "--max_..._samples, or --streaming."
        )
    if not limit:
        source = stream_images(data_args, processor, [args.split])[args.split]
        if data_args.streaming or (isinstance(source, ImageStream) and source.hash_range == ALL_HASHES):
            return source
    return open_split(args, data_args, processor)


def start_processes() -> tuple[int, int]:
    """Rank of this process and number of all. Those of `accelerate launch` or `torchrun` are connected by gloo, on any
    device: they exchange only counts."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return 0, 1
    dist.init_process_group("gloo", timeout=timedelta(days=30))  # the first to finish waits for the last
    return dist.get_rank(), dist.get_world_size()


def _from_main(function: Callable[[], Any]) -> Any:
    """What `function` returns or raises in the main process, in all processes."""
    if not dist.is_initialized():
        return function()
    result: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            result[0] = function()
        except Exception as error:
            result[1] = error
    dist.broadcast_object_list(result, src=0)
    if result[1] is not None:
        raise result[1]
    return result[0]


def _gather(value: Any) -> list:
    """The values of all processes, in the main process."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    try:
        dist.gather_object(value, values if dist.get_rank() == 0 else None)
    except RuntimeError as error:
        raise RuntimeError("Another process has ended. The same command, given again, does what is left.") from error
    return values


def describe_run(
    args: InferenceArguments, data_args: DataArguments, classifier: Classifier, source: ImageDataset | ImageStream,
    num_parts: int,
) -> dict[str, Any]:  # fmt: skip
    """What the predictions depend on, as JSON values: flags by name, hashes of the checkpoint and of the dataset."""
    flags = {**vars(args), **vars(data_args)}
    run = {  # the flags first: they change the rest, and the first difference is reported
        **{name: value for name, value in flags.items() if name not in NOT_RECORDED},
        "dataset": f"{source.source} {_fingerprint(source, data_args)}",
        "checkpoint": hash_checkpoint(classifier),
        "reject": classifier.threshold,
        "parts": num_parts,
    }
    return json.loads(json.dumps(run))


def hash_checkpoint(classifier: Classifier) -> str:
    """16 hex digits that depend on the weights, the network and the settings of the processor."""
    model, processor = classifier.model, classifier.processor
    config = {field.name: getattr(model.config, field.name) for field in fields(model.config)}
    settings = [
        {name: value for name, value in config.items() if name not in BASE_FIELDS}, classifier.names,
        {name: value for name, value in processor.to_dict().items() if name not in UNUSED},
    ]  # fmt: skip
    state = hashlib.blake2b(json.dumps(settings, sort_keys=True, default=str).encode(), digest_size=8)
    for weight in model.state_dict().values():
        state.update(weight.cpu().contiguous().view(torch.uint8).numpy().data)
    return state.hexdigest()


def _fingerprint(source: ImageDataset | ImageStream, data_args: DataArguments) -> str:
    """A hash of images and labels; of a stream, which is not read, one of its files' names, sizes and times, or the
    commit on the Hub."""
    if isinstance(source, ImageDataset):
        return fingerprint({"": source})
    folder, *_ = [*dataset_folders(data_args), Path(DEFAULT_DATASET)]
    if not folder.is_dir():
        try:
            return str(huggingface_hub.HfApi().dataset_info(str(folder)).sha)
        except Exception:  # offline, from the cache
            return ""
    found = [(file, (folder / file).stat()) for file in list_files(folder)]
    files = [(file.as_posix(), stat.st_size, stat.st_mtime_ns) for file, stat in found]
    return hashlib.blake2b(json.dumps(files).encode(), digest_size=8).hexdigest()


def part_path(folder: Path, part: int, num_parts: int) -> Path:
    """The file of a part."""
    return folder / f"part-{part:05}-of-{num_parts:05}.parquet"


def prepare_folder(folder: Path, run: dict[str, Any]) -> dict[int, Tally]:
    """Write the manifest of a new run, or check that the folder's is of the same run.
    Returns the counts of the parts that are finished."""
    manifest = folder / MANIFEST
    if not manifest.exists():
        if other := next((path.name for path in folder.iterdir() if not path.name.startswith(".")), None):
            raise UsageError(f"{folder} is not empty ({other}) and has no {MANIFEST}: choose another folder.")
        write_text(manifest, json.dumps({"run": run}, indent=2))
    try:
        before = json.loads(manifest.read_text(encoding="utf-8"))["run"]
        values = {name: (before.get(name), value) for name, value in run.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UsageError(f"Cannot read {manifest}: delete {folder}, or choose another folder.") from error
    for name, (old, new) in values.items():
        if old != new:
            raise UsageError(
                f"{folder} holds predictions of another run, with {name} {old!r}, not {new!r}: choose another folder."
            )
    tallies = {part: read_tally(part_path(folder, part, run["parts"]), run) for part in range(run["parts"])}
    return {part: tally for part, tally in tallies.items() if tally is not None}


def read_tally(path: Path, run: dict[str, Any]) -> Tally | None:
    """The counts in a part; `None` if it is not finished."""
    try:
        content = json.loads(pyarrow.parquet.read_metadata(path).metadata[METADATA])
        counts = {**content["counts"], "unknown": Counter(content["counts"]["unknown"])}
        tally = Tally(**counts)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, pyarrow.ArrowException):
        logger.warning("Predicting %s again: the file is damaged.", path)
        return None
    if content["run"] != run:
        raise UsageError(f"{path} belongs to another run: choose another folder, or delete this file.")
    return tally


def write_part(
    folder: Path, part: int, run: dict[str, Any], classifier: Classifier,
    batches: Iterable[tuple[torch.Tensor, list[dict], torch.Tensor]], names: list[str], is_quiet: bool,
) -> Tally:  # fmt: skip
    """Predict a part and write its file, completely or not at all. Returns its counts, which the file also holds."""
    columns = [*COLUMNS, *(["top_k"] if classifier.top_k > 1 else [])]
    path, tally = part_path(folder, part, run["parts"]), Tally(is_selective=classifier.threshold is not None)
    rows: list[dict] = []
    with replacing(path) as staging, pyarrow.parquet.ParquetWriter(staging, to_arrow([], columns).schema) as writer:
        for images, found, labels in batches:
            classifier.predict(images, found, labels, names, tally)
            for row in found:
                row["part"] = part
                if not is_quiet:
                    print_prediction(row)
            rows += found
            if len(rows) >= ROW_GROUP:
                writer.write_table(to_arrow(rows, columns))
                rows = []
        writer.write_table(to_arrow(rows, columns))
        writer.add_key_value_metadata({METADATA: json.dumps({"run": run, "counts": vars(tally)})})
    return tally


def write_summary(folder: Path, run: dict[str, Any], tallies: dict[int, Tally]) -> Tally:
    """Add to the manifest the counts of each part, the index of its first image in the split, and the sums."""
    total, parts = Tally(), []
    for part, tally in sorted(tallies.items()):
        name = part_path(folder, part, run["parts"]).name
        parts.append({"file": name, "first_index": total.images, "images": tally.images})
        total.merge(tally)
        total.is_selective = tally.is_selective
    if missing := {part["file"] for part in parts} - {path.name for path in folder.iterdir()}:
        logger.warning("%d parts are not in %s: all machines must share this folder.", len(missing), folder)
    content = {"run": run, "counts": vars(total), "parts": parts}
    if json.loads((folder / MANIFEST).read_text(encoding="utf-8")) != content:
        write_text(folder / MANIFEST, json.dumps(content, indent=2))
    return total
