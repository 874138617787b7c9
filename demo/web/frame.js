// Frames a drawing as MNIST's digits are, and as VitMnistImageProcessor does with do_center=True, to the same pixels:
// scales the ink's bounding box into 20x20, keeping its aspect, and places its center of mass at the center of 28x28.
// Images are {width, height, data}; data has one gray byte per pixel, light ink on dark paper.

const SIDE = 28;
const BOX = 20 / 28; // of the side

// Python rounds halves to the even neighbor.
function round(x) {
  const floor = Math.floor(x);
  if (x - floor !== 0.5) return Math.round(x);
  return floor % 2 === 0 ? floor : floor + 1;
}

const clamp = (x, low, high) => Math.min(Math.max(x, low), high);

/** NumPy's percentile, linear between neighbors. */
function percentile(sorted, percent) {
  const at = ((sorted.length - 1) * percent) / 100;
  const below = Math.floor(at);
  const above = Math.min(below + 1, sorted.length - 1);
  return Math.fround(sorted[below] + (sorted[above] - sorted[below]) * (at - below));
}

/** One pass of Pillow's bilinear resampling along rows, in its fixed-point arithmetic (22 bits). */
function resampleRows(image, width) {
  const scale = image.width / width;
  const support = Math.max(scale, 1);
  const data = new Uint8Array(width * image.height);
  for (let x = 0; x < width; x++) {
    const center = (x + 0.5) * scale;
    const first = Math.max(Math.trunc(center - support + 0.5), 0);
    const last = Math.min(Math.trunc(center + support + 0.5), image.width);
    const weights = [];
    for (let i = first; i < last; i++) weights.push(Math.max(1 - Math.abs((i - center + 0.5) * (1 / support)), 0));
    const share = 1 / weights.reduce((sum, weight) => sum + weight, 0);
    const fixed = weights.map((weight) => Math.trunc(0.5 + weight * share * 2 ** 22));
    for (let y = 0; y < image.height; y++) {
      let sum = 2 ** 21;
      for (let i = 0; i < fixed.length; i++) sum += image.data[y * image.width + first + i] * fixed[i];
      data[y * width + x] = clamp(Math.floor(sum / 2 ** 22), 0, 255);
    }
  }
  return { width, height: image.height, data };
}

function transpose(image) {
  const data = new Uint8Array(image.data.length);
  for (let y = 0; y < image.height; y++)
    for (let x = 0; x < image.width; x++) data[x * image.height + y] = image.data[y * image.width + x];
  return { width: image.height, height: image.width, data };
}

const resampleColumns = (image, height) => transpose(resampleRows(transpose(image), height));

export function resize(image, width, height) {
  const across = (it) => (it.width === width ? it : resampleRows(it, width));
  const down = (it) => (it.height === height ? it : resampleColumns(it, height));
  // As in Pillow 13: rows first, except for images more than twice as high as wide. The first pass rounds to bytes.
  return image.height > 2 * image.width ? across(down(image)) : down(across(image));
}

/** 28x28 bytes of a drawing of any size; all zeros if it has no ink. */
export function frameAsMnist(image) {
  const { width, height } = image;
  const at = (x, y) => image.data[y * width + x];
  const border = [];
  for (let x = 0; x < width; x++) border.push(at(x, 0), at(x, height - 1));
  for (let y = 1; y < height - 1; y++) border.push(at(0, y), at(width - 1, y));
  border.sort((a, b) => a - b);
  const [paper, bright] = [percentile(border, 50), percentile(border, 95)];
  const threshold = Math.fround(paper + 3 * (bright - paper));

  let [left, right, top, bottom] = [width, -1, height, -1];
  const ink = new Uint8Array(width * height);
  for (let y = 0; y < height; y++)
    for (let x = 0; x < width; x++) {
      if (at(x, y) <= threshold) continue;
      ink[y * width + x] = Math.trunc(at(x, y) - paper);
      if (!ink[y * width + x]) continue;
      [left, right, top, bottom] = [Math.min(left, x), Math.max(right, x), Math.min(top, y), Math.max(bottom, y)];
    }
  const canvas = new Uint8Array(SIDE * SIDE);
  if (right < 0) return canvas;

  const box = { width: right - left + 1, height: bottom - top + 1 };
  box.data = new Uint8Array(box.width * box.height);
  for (let y = 0; y < box.height; y++)
    for (let x = 0; x < box.width; x++) box.data[y * box.width + x] = ink[(top + y) * width + left + x];
  const scale = (SIDE * BOX) / Math.max(box.width, box.height);
  const digit = resize(box, Math.max(1, round(box.width * scale)), Math.max(1, round(box.height * scale)));

  let [mass, sumX, sumY] = [0, 0, 0];
  digit.data.forEach((value, index) => {
    mass += value;
    sumX += value * (index % digit.width);
    sumY += value * Math.floor(index / digit.width);
  });
  if (mass === 0) return canvas;
  const x0 = clamp(round(SIDE / 2 - sumX / mass), 0, SIDE - digit.width);
  const y0 = clamp(round(SIDE / 2 - sumY / mass), 0, SIDE - digit.height);
  for (let y = 0; y < digit.height; y++)
    for (let x = 0; x < digit.width; x++) canvas[(y0 + y) * SIDE + x0 + x] = digit.data[y * digit.width + x];
  return canvas;
}

/** Bytes to the network's inputs, in the processor's float32 arithmetic. */
export function normalize(bytes, mean, std) {
  return Array.from(bytes, (byte) => Math.fround(Math.fround(Math.fround(byte / 255) - Math.fround(mean)) / Math.fround(std)));
}
