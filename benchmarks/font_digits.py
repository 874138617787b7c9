"""
Draw the digits of the fonts that `data/font-digits/README.md` lists, as the dataset of 64x64 images there.

    python benchmarks/font_digits.py FOLDER

FOLDER holds a file of each font, named after it: `caveat.woff`, for example, is the regular Latin file of the npm
package `@fontsource/caveat`.
"""

import argparse
import re
from pathlib import Path

import datasets
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from modeling_vit_mnist.cli.errors import UsageError, run_script

DATA = Path(__file__).resolve().parents[1] / "data" / "font-digits"
SIDE, MARGIN = 64, 6  # pixels
DIGITS = "0123456789"


def draw(digit: str, font: PIL.ImageFont.FreeTypeFont) -> PIL.Image.Image:
    """The digit in white on black, of two levels, scaled until it meets the margin."""
    left, top, right, bottom = font.getbbox(digit)
    large = PIL.Image.new("L", (round(right - left) + 2, round(bottom - top) + 2))
    PIL.ImageDraw.Draw(large).text((1 - left, 1 - top), digit, fill=255, font=font)
    large = large.crop(large.getbbox())
    scale = (SIDE - 2 * MARGIN) / max(large.size)
    small = large.resize([max(1, round(extent * scale)) for extent in large.size], PIL.Image.Resampling.LANCZOS)
    image = PIL.Image.new("L", (SIDE, SIDE))
    image.paste(small, ((SIDE - small.width) // 2, (SIDE - small.height) // 2))
    return image.point(lambda level: 255 * (level > 127)).convert("1")


def open_font(folder: Path, name: str) -> PIL.ImageFont.FreeTypeFont:
    file = next(folder.glob(f"{name}.*"), None)
    if file is None:
        raise UsageError(f"{folder} holds no file of the font {name}, such as {name}.woff.")
    try:
        return PIL.ImageFont.truetype(str(file), 400)
    except OSError as error:
        raise UsageError(f"Cannot read the font {file}: {error}.") from error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1], allow_abbrev=False)
    parser.add_argument("folder", type=Path, help="Folder of the font files.")
    parser.add_argument("--output_dir", type=Path, default=DATA / "data", help="Folder of the dataset.")
    args = parser.parse_args()
    listed = re.findall(
        r"^\| ([\w-]+) \| (train|test) \|", (DATA / "README.md").read_text("utf-8"), flags=re.MULTILINE
    )
    fonts = [(split, name, open_font(args.folder, name)) for name, split in listed]  # all, before anything is written
    features = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=list(DIGITS)), font=datasets.Value("string")
    )
    for split in ("train", "test"):
        rows = [
            {"image": draw(digit, font), "label": int(digit), "font": name}
            for its, name, font in fonts
            if its == split
            for digit in DIGITS
        ]
        target = args.output_dir / f"{split}-00000-of-00001.parquet"
        datasets.Dataset.from_list(rows, features).to_parquet(target)
        print(f"{len(rows):,} images: {target}")


if __name__ == "__main__":
    run_script(main)
