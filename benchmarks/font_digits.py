"""Draw the digits of the fonts that `data/font-digits/README.md` lists, and save them as the dataset beside it.

    python benchmarks/font_digits.py FOLDER

FOLDER holds a file of each font, named after it: `caveat.woff`, for example, is the regular Latin file of the npm
package `@fontsource/caveat`."""

import re
import sys
from pathlib import Path

import datasets
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

DATA = Path(__file__).resolve().parents[1] / "data" / "font-digits"
SIDE, MARGIN = 64, 6  # pixels
DIGITS = "0123456789"


def draw(digit: str, font: PIL.ImageFont.FreeTypeFont) -> PIL.Image.Image:
    """The digit in white on black, scaled to fill the image, of two levels."""
    left, top, right, bottom = font.getbbox(digit)
    large = PIL.Image.new("L", (round(right - left) + 2, round(bottom - top) + 2))
    PIL.ImageDraw.Draw(large).text((1 - left, 1 - top), digit, fill=255, font=font)
    large = large.crop(large.getbbox())
    scale = (SIDE - 2 * MARGIN) / max(large.size)
    small = large.resize([max(1, round(extent * scale)) for extent in large.size], PIL.Image.Resampling.LANCZOS)
    image = PIL.Image.new("L", (SIDE, SIDE))
    image.paste(small, ((SIDE - small.width) // 2, (SIDE - small.height) // 2))
    return image.point(lambda level: 255 * (level > 127)).convert("1")


def main() -> None:
    fonts = re.findall(r"^\| ([\w-]+) \| (train|test) \|", (DATA / "README.md").read_text(), flags=re.MULTILINE)
    features = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=list(DIGITS)), font=datasets.Value("string")
    )
    for split in ("train", "test"):
        columns: dict[str, list] = {"image": [], "label": [], "font": []}
        for name in (name for name, its in fonts if its == split):
            font = PIL.ImageFont.truetype(str(next(Path(sys.argv[1]).glob(f"{name}.*"))), 400)
            columns["image"] += [draw(digit, font) for digit in DIGITS]
            columns["label"] += range(len(DIGITS))
            columns["font"] += [name] * len(DIGITS)
        target = DATA / "data" / f"{split}-00000-of-00001.parquet"
        datasets.Dataset.from_dict(columns, features).to_parquet(target)
        print(f"{len(columns['label']):,} images: {target}")


if __name__ == "__main__":
    main()
