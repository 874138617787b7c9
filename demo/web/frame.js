// Finds the digit in a drawing, a scan or a photograph and frames it as MNIST's are: function by function the same as
// `framing_vit_mnist.py` and `morphology_vit_mnist.py`, to the same pixels. Images are {width, height, data}; data has
// one gray byte per pixel.

const SIDE = 28;
const BOX = 20; // MNIST's digits were scaled into 20x20 of the 28x28 pixels
const WORKING_SIDE = 384; // pixels of the longer side of the image in which the digit is searched
const LEAST_SIDE = 20; // of an image that is searched as it is
const MAGNIFIED_SIDE = 40; // pixels that a smaller one is magnified to
const FINE = 8; // pixels per pixel of the frame in which strokes are made thicker or thinner
const STROKE = 2.9 / 20; // width of strokes after framing, in parts of the longer side of the digit
const LEVELS = [0.15, 0.75]; // thresholds in parts of the strongest ink
const SMALL_LEVELS = [0.2, 0.5]; // of small images, whose strokes are soft
const PLAUSIBLE = 3; // of a further digit, or of one in a single color; below it, ink is searched again
const WINDOW = 0.3; // in parts of the longer side of the image: ink is narrower
const NARROW = 0.1; // window for pale ink in soft shadows
const WIDE = 0.45; // window for thick strokes that fill an image, and for drawings
const THICKENING = 5; // pixels of the working image that hairlines are thickened to, as they may have broken into pieces
const THICKENED = 1.5; // how much more plausible a digit of thickened lines must be
const SPECK = 0.04; // of the longer side of the image: smaller is no digit
const LINED = 2.5; // how much more plausible a digit is without lines that touch it
const FILLING = 8; // preference of a digit that fills the image, per part of the image beyond a quarter
const HOLE = 2.6; // a digit that fills the image may be preferred to a small hole in it by so much less
const SHEET = 2.4; // a digit on a sheet may be less plausible than the sheet by so much
const LEAST_CONTRAST = 16; // between paper and ink, of 255
const COARSE_SIDE = 768; // pixels of the longer side, which tell in which color a digit is seen

// Python rounds halves to the even neighbor.
function round(x) {
  const floor = Math.floor(x);
  if (x - floor !== 0.5) return Math.round(x);
  return floor % 2 === 0 ? floor : floor + 1;
}

const clamp = (x, low, high) => Math.min(Math.max(x, low), high);

function highest(data) {
  let high = 0;
  for (let i = 0; i < data.length; i++) if (data[i] > high) high = data[i];
  return high;
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
      let sum = 2 ** 21; // rounds; below 2 ** 31 with all weights, whose sum is 2 ** 22
      for (let i = 0; i < fixed.length; i++) sum += image.data[y * image.width + first + i] * fixed[i];
      data[y * width + x] = sum >> 22;
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

/** Rows, then columns; antialiased when shrinking. The first pass rounds to bytes. The new sides are rounded. */
function resize(image, newWidth, newHeight) {
  const [width, height] = [newWidth, newHeight].map((side) => Math.max(1, round(side)));
  const across = image.width === width ? image : resampleRows(image, width);
  return image.height === height ? across : resampleColumns(across, height);
}

/**
 * The gray levels of an image with the opaque colors {width, height, data}, of four bytes per pixel: by Pillow's luma in
 * its fixed-point arithmetic. If no plausible digit is found in it, but in red, green or blue alone, that is gray.
 */
export function toGray({ width, height, data }) {
  const take = (level, step = 1) => {
    const gray = { width: Math.ceil(width / step), height: Math.ceil(height / step) };
    gray.data = new Uint8Array(gray.width * gray.height);
    for (let y = 0, i = 0; y < height; y += step)
      for (let x = 0; x < width; x += step) gray.data[i++] = level(4 * (y * width + x));
    return gray;
  };
  const luma = (i) => (19595 * data[i] + 38470 * data[i + 1] + 7471 * data[i + 2] + 0x8000) >> 16;
  const step = Math.max(1, Math.floor(Math.max(width, height) / COARSE_SIDE));
  const coarse = take(luma, step);
  const colors = [0, 1, 2].map((color) => ({ level: (i) => data[i + color] }));
  for (const color of colors) color.coarse = take(color.level, step);
  const isGray = colors.every((color) => color.coarse.data.every((level, i) => level === coarse.data[i]));
  if (isGray || frameDigit(coarse).plausibility >= PLAUSIBLE) return take(luma);
  for (const color of colors) color.plausibility = frameDigit(color.coarse).plausibility;
  const clearest = colors.reduce((one, other) => (other.plausibility > one.plausibility ? other : one));
  return take(clearest.plausibility >= PLAUSIBLE ? clearest.level : luma);
}

/**
 * Find the digit in an image. An image of MNIST is returned as it is. Of the result,
 * `image` has the 784 bytes of the frame, all 0 if there is no digit,
 * `problem` says why there is none, or is null,
 * `isFramed` says that the image was framed already,
 * `isDarkOnLight` says whether the ink is darker than the paper, or is null for an image that was framed or too small,
 * `digit` is {mask, left, top, scale}: the pixel (x, y) of `mask`, 1 where the digit is, lies at (left + scale * x,
 * top + scale * y) of the picture; null where `isDarkOnLight` is,
 * `hasOthers` says whether there is more that may be a digit,
 * `plausibility` says how much it is like a digit, as log-odds, and more if it fills the image: the highest if it was
 * framed already, the lowest if there is none.
 */
export function frameDigit(original, cropAgain = true) {
  const { image: gray, size } = unrepeat(original);
  const found = { image: gray.data, problem: null, isFramed: true, hasOthers: false };
  Object.assign(found, { isDarkOnLight: null, digit: null, plausibility: Infinity });
  if (isFramedAsMnist(gray)) return found;
  Object.assign(found, { image: new Uint8Array(SIDE * SIDE), isFramed: false, plausibility: -Infinity });
  const longest = Math.max(gray.width, gray.height);
  const factor = longest < LEAST_SIDE ? longest / MAGNIFIED_SIDE : Math.max(1, longest / WORKING_SIDE);
  const working = factor === 1 ? gray : resize(gray, gray.width / factor, gray.height / factor);
  if (Math.min(gray.width, gray.height, working.width, working.height) < 3)
    return { ...found, problem: `an image of ${gray.width}x${gray.height} pixels is too small` };
  let candidates = [...findCandidates(working, true), ...findCandidates(working, false)];
  if (Math.max(working.width, working.height) >= 64) candidates.push(...searchAgain(working, candidates));
  candidates = [...candidates, ...leaveOutLines(working, candidates)];
  if (!candidates.length) return { ...found, problem: "the image is blank" };
  let best = choose(candidates);
  const onSheet = lookOnSheet(working, best.digit, !best.isDark).filter(({ score }) => score > best.score - SHEET);
  if (onSheet.length) {
    candidates = [...onSheet, ...leaveOutLines(working, onSheet)];
    best = choose(candidates);
  }
  const { ink, digit } = best;
  const [top, bottom, left, right] = bounds(digit);
  const length = Math.max(bottom - top, right - left);
  if (cropAgain && factor > 1.5 && length < WORKING_SIDE / 4) {
    const [y0, x0] = [top, left].map((at) => Math.max(0, Math.trunc((at - length) * factor)));
    const y1 = Math.min(gray.height, Math.trunc((bottom + length) * factor));
    const x1 = Math.min(gray.width, Math.trunc((right + length) * factor));
    const again = frameDigit(cut(gray, y0, y1, x0, x1), false);
    if (again.digit) Object.assign(again.digit, { left: size * x0, top: size * y0, scale: size * again.digit.scale });
    return again;
  }
  const contrast = percentile(inside(ink, digit), 75);
  const mask = magnify(ink, digit, contrast, BOX * FINE);
  found.isDarkOnLight = best.isDark;
  found.digit = { mask: digit, left: 0, top: 0, scale: size * factor };
  found.problem = whyNoDigit(best, contrast, strokeWidth(mask) / Math.max(mask.width, mask.height));
  if (found.problem !== null) return found;
  found.image = place(setStrokeWidth(mask));
  found.plausibility = preference(best);
  found.hasOthers = candidates.some((other) => {
    const overlaps = other.digit.data.some((is, i) => is && digit.data[i]);
    if (other.score <= PLAUSIBLE || other.ink !== ink || overlaps) return false;
    const { width, height } = crop(other.digit);
    return 2 * Math.max(width, height) >= length;
  });
  return found;
}

const greatestDivisor = (a, b) => (b ? greatestDivisor(b, a % b) : a);

/**
 * The image without the repetitions of its pixels, if each of them was repeated to magnify it, and how often it was
 * along each axis.
 */
function unrepeat(image) {
  const { width, height, data } = image;
  let size = greatestDivisor(width, height);
  for (let y = 0; y < height && size > 1; y++)
    for (let x = 1; x < width; x++)
      if (data[y * width + x] !== data[y * width + x - 1]) size = greatestDivisor(size, x);
  for (let x = 0; x < width && size > 1; x++)
    for (let y = 1; y < height; y++)
      if (data[y * width + x] !== data[(y - 1) * width + x]) size = greatestDivisor(size, y);
  if (size === 1 || Math.min(width, height) < 3 * size) return { image, size: 1 };
  const small = new Uint8Array(data.length / size ** 2);
  small.forEach((_, i) => {
    const [y, x] = [Math.floor((i * size) / width), (i * size) % width];
    small[i] = data[y * size * width + x];
  });
  return { image: { width: width / size, height: height / size, data: small }, size };
}

/** Whether an image of 28x28 pixels is framed as all 70,000 of MNIST are. */
function isFramedAsMnist(gray) {
  if (gray.width !== SIDE || gray.height !== SIDE || highest(gray.data) < 254) return false;
  const [top, bottom, left, right] = bounds(gray);
  const isCentered = centerOfMass(gray).every((middle) => 13.48 <= middle && middle <= 14.5);
  return [19, 20].includes(Math.max(bottom - top, right - left)) && isCentered;
}

/** First row, last row + 1, first column and last column + 1 that hold a pixel. */
export function bounds({ width, height, data }) {
  let [top, bottom, left, right] = [height, 0, width, 0];
  for (let y = 0; y < height; y++)
    for (let x = 0; x < width; x++) {
      if (!data[y * width + x]) continue;
      if (top > y) top = y;
      if (left > x) left = x;
      if (right <= x) right = x + 1;
      bottom = y + 1;
    }
  return [top, bottom, left, right];
}

/** Row and column. */
function centerOfMass({ width, data }) {
  let [mass, sumY, sumX] = [0, 0, 0];
  data.forEach((value, index) => {
    mass += value;
    sumY += value * Math.floor(index / width);
    sumX += value * (index % width);
  });
  return [sumY / mass, sumX / mass];
}

function cut(image, y0, y1, x0, x1) {
  const [width, height] = [x1 - x0, y1 - y0];
  const data = new Uint8Array(width * height);
  for (let y = 0; y < height; y++)
    data.set(image.data.subarray((y0 + y) * image.width + x0, (y0 + y) * image.width + x1), y * width);
  return { width, height, data };
}

const crop = (mask) => cut(mask, ...bounds(mask));

function padded(image, margin) {
  const [width, height] = [image.width + 2 * margin, image.height + 2 * margin];
  const data = new Uint8Array(width * height);
  for (let y = 0; y < image.height; y++)
    data.set(image.data.subarray(y * image.width, (y + 1) * image.width), (y + margin) * width + margin);
  return { width, height, data };
}

// Plain loops: those of typed arrays are several times slower.
function mapped({ width, height, data }, change) {
  const result = new Uint8Array(data.length);
  for (let i = 0; i < data.length; i++) result[i] = change(data[i], i);
  return { width, height, data: result };
}

function inverted({ width, height, data }) {
  const result = new Uint8Array(data.length);
  for (let i = 0; i < data.length; i++) result[i] = 255 - data[i];
  return { width, height, data: result };
}

/** The maximum in a square window of odd size around each pixel: a dilation. In log2(size) steps per axis. */
function slidingMax({ width, height, data }, size) {
  const half = size >> 1;
  const [wide, high] = [width + 2 * half, height + 2 * half];
  // The edges are repeated. Steps run over the ends of rows, but only into columns that are cut off.
  const rows = new Uint8Array(wide * height);
  for (let y = 0; y < height; y++) {
    const [start, end] = [y * width, (y + 1) * width];
    rows.fill(data[start], y * wide, y * wide + half);
    rows.set(data.subarray(start, end), y * wide + half);
    rows.fill(data[end - 1], y * wide + half + width, (y + 1) * wide);
  }
  growMax(rows, size, 1);
  const columns = new Uint8Array(width * high);
  for (let y = 0; y < high; y++) {
    const start = clamp(y - half, 0, height - 1) * wide;
    columns.set(rows.subarray(start, start + width), y * width);
  }
  growMax(columns, size, width);
  return { width, height, data: columns.subarray(0, width * height) };
}

/** In place: the maximum of each value and the `size - 1` after it, `stride` apart. */
function growMax(data, size, stride) {
  for (let covered = 1; covered < size; ) {
    const step = Math.min(covered, size - covered);
    const ahead = step * stride;
    for (let i = 0; i + ahead < data.length; i++) if (data[i + ahead] > data[i]) data[i] = data[i + ahead];
    covered += step;
  }
}

const slidingMin = (image, size) => inverted(slidingMax(inverted(image), size));

/** Each pixel with its neighbors, weighted 1, 2, 1 along both axes. */
function blur({ width, height, data }) {
  const result = new Uint8Array(data.length);
  const sums = new Uint16Array(width);
  for (let y = 0; y < height; y++) {
    const [above, row, below] = [y - 1, y, y + 1].map((at) => clamp(at, 0, height - 1) * width);
    for (let x = 0; x < width; x++) sums[x] = data[above + x] + 2 * data[row + x] + data[below + x];
    for (let x = 0; x < width; x++) {
      const [left, right] = [x > 0 ? sums[x - 1] : sums[x], x < width - 1 ? sums[x + 1] : sums[x]];
      result[row + x] = (left + 2 * sums[x] + right + 8) >> 4;
    }
  }
  return { width, height, data: result };
}

/** The values of an image where a mask is set. */
const inside = (image, mask) => image.data.filter((_, i) => mask.data[i]);

const sum = (values) => values.reduce((total, value) => total + value, 0);

/**
 * All that may be the digit, if the ink is darker than the paper, or lighter; after its lines are thickened to at least
 * `thickening` pixels, or after `lines`, a mask, are painted over with paper. Ink is what a closing adds (a black
 * top-hat) whose window is a part of the longer side. It is in parts of the brightness of the paper.
 */
function findCandidates(original, isDark, window = WINDOW, thickening = 0, lines = null) {
  const longer = Math.max(original.width, original.height);
  const isDrawing = longer < 64 || isTwoLevel(original);
  const asDark = isDark ? original : inverted(original);
  const light = thickening ? slidingMin(asDark, thickening) : asDark;
  const lined = longer >= 64 ? blur(light) : light;
  const size = Math.trunc((isDrawing ? WIDE : window) * longer) | 1;
  const paper = slidingMin(slidingMax(lined, size), size);
  const gray = lines ? mapped(lined, (level, i) => (lines.data[i] ? paper.data[i] : level)) : lined;
  const ink = mapped(paper, (level, i) =>
    Math.floor(((level - gray.data[i]) * 255) / (isDark ? Math.max(level, 96) : 255)),
  );
  const histogram = count(ink.data);
  const strongest = ink.data.length > 20000 ? largest(histogram, 20) : highest(ink.data);
  const noise = percentile(ink.data, 30); // most of an image is paper
  if (strongest < LEAST_CONTRAST) return [];
  const levels = longer >= 64 ? LEVELS : SMALL_LEVELS;
  const lowest = Math.max(levels[0] * strongest, noise);
  const digits = (thickening ? levels.slice(0, 1) : levels).flatMap((level) => {
    const threshold = Math.max(level * strongest, noise);
    return findDigits(ink, mapped(ink, (value) => (value > threshold ? 1 : 0)));
  });
  const isFirst = (digit, i) => digits.findIndex(({ data }) => data.every((is, at) => is === digit.data[at])) === i;
  return digits.filter(isFirst).map((digit) => ({
    score: plausibility(gray, paper, ink, digit, lowest, isDrawing),
    isDark,
    ink,
    digit,
  }));
}

/**
 * Further candidates: thick strokes, if anything fills the image; if nothing is plausible, pale ink in soft shadows and
 * hairlines that have broken into pieces.
 */
function searchAgain(gray, candidates) {
  const isFilled = candidates.some(({ digit }) => fillsImage(digit)) && !isTwoLevel(gray);
  const thick = isFilled ? [true, false].flatMap((isDark) => findCandidates(gray, isDark, WIDE)) : [];
  const sofar = [...candidates, ...thick];
  if (sofar.some(({ score }) => score >= PLAUSIBLE)) return thick;
  const strongest = Math.max(0, ...sofar.map(({ ink }) => highest(ink.data)));
  const longer = Math.max(gray.width, gray.height);
  // A dot wider than the window leaves a small cross, and a blur a weak one.
  const isCross = ({ ink, digit }) => {
    const { width, height } = crop(digit);
    return 4 * Math.max(width, height) < longer || 2 * highest(ink.data) < strongest;
  };
  const thin = [true, false].flatMap((isDark) => {
    const thickened = findCandidates(gray, isDark, WINDOW, THICKENING);
    return [
      ...findCandidates(gray, isDark, NARROW).filter((candidate) => !isCross(candidate)),
      ...thickened.map((candidate) => ({ ...candidate, score: candidate.score - THICKENED })),
    ];
  });
  return [...thick, ...thin];
}

function fillsImage(digit) {
  const { width, height } = crop(digit);
  return 10 * width * height >= 7 * digit.data.length;
}

/**
 * The plausibility of a candidate, and more if it fills the image: the paper between thick strokes is thin and clean
 * like a digit.
 */
function preference({ score, digit }) {
  return fillsImage(digit) ? score + FILLING * Math.max(sum(digit.data) / digit.data.length - 0.25, 0) : score;
}

const preferred = (candidates) =>
  candidates.reduce((one, other) => (preference(other) > preference(one) ? other : one));

/** The preferred one. If it is small, it may be a hole in a digit that fills the image: then that digit. */
function choose(candidates) {
  const best = preferred(candidates);
  const { width, height } = crop(best.digit);
  if (10 * Math.max(width, height) >= 3 * Math.max(best.ink.width, best.ink.height)) return best;
  const others = candidates.filter(({ isDark, digit }) => isDark !== best.isDark && fillsImage(digit));
  const around = others.length ? preferred(others) : best;
  return preference(around) > Math.max(preference(best) - HOLE, 0) ? around : best;
}

/**
 * Further candidates: the best of darker and of lighter ink, without the lines of a form that touch them. If one of
 * the best two is not plausible with its lines, and their ink is stronger than the rest's, the lines are painted over, and
 * the digit is searched again.
 */
function leaveOutLines(gray, candidates) {
  if (Math.max(gray.width, gray.height) < 64) return [];
  const best = [true, false].flatMap((isDark) => {
    const same = candidates.filter((candidate) => candidate.isDark === isDark);
    const [first, second] = same.sort((one, other) => preference(other) - preference(one));
    return [first, second?.score > PLAUSIBLE ? undefined : second].filter((candidate) => candidate?.score > 0);
  });
  return best.flatMap((candidate) => {
    const { score, isDark, ink, digit } = candidate;
    const rest = dropLines(digit);
    if (rest === digit) return [];
    if (score > PLAUSIBLE) return [{ ...candidate, score: score + LINED, digit: rest }];
    const gone = mapped(digit, (is, i) => (is && !rest.data[i] ? 1 : 0));
    if (5 * percentile(inside(ink, gone), 75) < 6 * percentile(inside(ink, rest), 75)) return [];
    const lines = mapped(slidingMax(gone, 3), (is, i) => (is && !rest.data[i] ? 1 : 0));
    return findCandidates(gray, isDark, WINDOW, 0, lines).filter((found) => {
      const kept = mapped(rest, (is, i) => is & found.digit.data[i]);
      return found.score > PLAUSIBLE && 2 * sum(kept.data) > sum(rest.data);
    });
  });
}

/** How much a mask is like a digit of dark ink, as log-odds: a logistic regression. */
function plausibility(gray, paper, ink, digit, threshold, isDrawing) {
  const [top, bottom, left, right] = bounds(digit);
  const side = Math.max(bottom - top, right - left);
  const values = inside(ink, digit);
  const area = values.length;
  const around = (image, margin) =>
    cut(
      image,
      Math.max(0, top - margin),
      Math.min(image.height, bottom + margin),
      Math.max(0, left - margin),
      Math.min(image.width, right + margin),
    );
  // It is dark, clean and of thin strokes, ...
  const contrast = percentile(values, 75) / 255;
  const clean = sum(values) / sum(around(ink, side >> 3).data.filter((value) => value > threshold));
  const width = strokeWidth(around(digit, 0)) / side;
  // ... little else around it is as dark: around the hole in a 0, for example, is paper, ...
  const dark = darknessAround(gray, paper, digit);
  // ... it is no speck, ...
  const speck = side < SPECK * Math.max(gray.width, gray.height) ? 3 : 0;
  // ... and it does not touch the border of the image, unless it fills the image.
  const isLarge = Math.max(gray.width, gray.height) >= 64;
  const edge = isLarge ? 2 : 1;
  const ends = [new Set(), new Set(), new Set(), new Set()];
  digit.data.forEach((is, i) => {
    if (!is) return;
    const [y, x] = [Math.floor(i / digit.width), i % digit.width];
    if (y < edge) ends[0].add(x);
    if (y >= digit.height - edge) ends[1].add(x);
    if (x < edge) ends[2].add(y);
    if (x >= digit.width - edge) ends[3].add(y);
  });
  const contact = Math.max(...ends.map((end) => end.size)) / side;
  const part = contact ? 1 - ((bottom - top) * (right - left)) / digit.data.length : 0;
  const middle = (sum(inside(gray, digit)) + sum(inside(paper, digit))) / (2 * area);
  const first = Math.min(gray.width, gray.height) >> 5; // not in a line along the border
  const [topLeft, topRight] = [first * gray.width + first, (first + 1) * gray.width - 1 - first];
  const end = gray.data.length - 1;
  const isInk = (i) => gray.data[i] < middle;
  // Drawings are often cropped tightly, with paper left at the corners.
  const corners = [topLeft, topRight, end - topRight, end - topLeft].filter(isInk).length;
  const border = (isLarge ? 5 : 3) * contact + (isDrawing ? corners : 2.25 * part);
  const score = 6 * contrast + 3 * clean - (1.3 * side) / Math.sqrt(area) - 18 * Math.max(width - 0.15, 0);
  return score - 10 * dark - speck - border + 3.2;
}

/** The fraction of the pixels around a mask that are closer to its ink than to its paper. Each ninth of its bounding box
 * has its own levels of both, since the edge of a shadow may cross it. */
function darknessAround(gray, paper, digit) {
  const [top, bottom, left, right] = bounds(digit);
  const margin = Math.max(bottom - top, right - left) >> 1;
  const [firstRow, endRow] = [Math.max(0, top - margin), Math.min(gray.height, bottom + margin)];
  const [firstColumn, endColumn] = [Math.max(0, left - margin), Math.min(gray.width, right + margin)];
  const third = (at, length) => Math.min(Math.max(Math.floor((3 * at) / length), 0), 2);
  const ninth = (y, x) => 3 * third(y - top, bottom - top) + third(x - left, right - left); // to the margin
  const area = new Array(9).fill(0);
  const twice = new Array(9).fill(0); // the sums of ink and paper
  for (let y = top; y < bottom; y++) {
    for (let x = left; x < right; x++) {
      const i = y * digit.width + x;
      if (!digit.data[i]) continue;
      area[ninth(y, x)] += 1;
      twice[ninth(y, x)] += gray.data[i] + paper.data[i];
    }
  }
  const mean = sum(twice) / 2 / sum(area);
  const levels = area.map((count, part) => (count ? twice[part] / 2 / count : mean));
  let dark = 0;
  for (let y = firstRow; y < endRow; y++) {
    for (let x = firstColumn; x < endColumn; x++) {
      if (gray.data[y * gray.width + x] < levels[ninth(y, x)]) dark += 1;
    }
  }
  const half = sum(area) / 2; // of the digit itself, about half is counted
  return (dark - half) / ((endRow - firstRow) * (endColumn - firstColumn) - half);
}

/**
 * All that may be the digit, if the mask is a sheet of paper or a board in a large image: a parallelogram with
 * something in it.
 */
function lookOnSheet(gray, mask, isDark) {
  if (Math.max(mask.width, mask.height) < 64) return [];
  // Wide parts of a sheet are no ink: the mask lacks them.
  const level = percentile(inside(gray, mask), 50);
  const around = slidingMax(mask, 7);
  const rim = mapped(around, (is, i) => (is && !mask.data[i] ? 1 : 0));
  const middle = (level + percentile(inside(gray, rim), 50)) / 2;
  const [top, bottom, left, right] = bounds(mask);
  const sheet = mapped(gray, (value, i) => {
    const [y, x] = [Math.floor(i / gray.width), i % gray.width];
    if (y < top || y >= bottom || x < left || x >= right) return 0;
    return (isDark ? value > middle : value < middle) ? 1 : 0;
  });
  const filled = fillSpans(sheet);
  const area = sum(filled.data);
  if (area - sum(sheet.data) <= 0.03 * area || !isParallelogram(filled)) return [];
  const within = slidingMin(filled, 5).data;
  const onSheet = mapped(gray, (value, i) => (within[i] ? value : level));
  return findCandidates(onSheet, isDark);
}

/** The pixels that lie between pixels of the mask both in their row and in their column. */
function fillSpans(mask) {
  const { width, height, data } = mask;
  const across = new Uint8Array(data.length);
  for (let y = 0; y < height; y++) {
    const row = data.subarray(y * width, (y + 1) * width);
    across.fill(1, y * width + Math.max(row.indexOf(1), 0), y * width + row.lastIndexOf(1) + 1);
  }
  const result = new Uint8Array(data.length);
  for (let x = 0; x < width; x++) {
    let [first, last] = [0, height - 1];
    while (first < height && !data[first * width + x]) first++;
    while (last >= first && !data[last * width + x]) last--;
    for (let y = first; y <= last; y++) result[y * width + x] = across[y * width + x];
  }
  return { width, height, data: result };
}

/** The mask, and the pixels that have it on at least three sides: to the left, to the right, above and below. */
function enclose({ width, height, data }) {
  const sides = new Uint8Array(data.length);
  const scan = (start, step, length) => {
    for (let i = start, k = 0, seen = 0; k < length; i += step, k++) {
      seen |= data[i];
      sides[i] += seen;
    }
  };
  for (let y = 0; y < height; y++) {
    scan(y * width, 1, width);
    scan((y + 1) * width - 1, -1, width);
  }
  for (let x = 0; x < width; x++) {
    scan(x, width, height);
    scan((height - 1) * width + x, -width, height);
  }
  return { width, height, data: sides.map((count, i) => (data[i] || count >= 3 ? 1 : 0)) };
}

/**
 * Whether the second moments of a mask are those of a parallelogram of its area, and it reaches into the corners. In
 * units of the standard deviation along each direction, a parallelogram is a square with 3.8 % of its area further than
 * the root of 4.5 from its center, and an ellipse is a circle that lies within.
 */
function isParallelogram({ width, data }) {
  let [area, sumY, sumX, sumYY, sumXX, sumXY] = [0, 0, 0, 0, 0, 0];
  const eachPixel = (use) => data.forEach((is, i) => is && use(Math.floor(i / width), i % width));
  eachPixel((y, x) => {
    area += 1;
    sumY += y;
    sumX += x;
    sumYY += y * y;
    sumXX += x * x;
    sumXY += x * y;
  });
  const [middleY, middleX] = [sumY / area, sumX / area];
  const pixel = 1 / 12; // the variance of a pixel's own area
  const rows = sumYY / area - middleY * middleY + pixel;
  const columns = sumXX / area - middleX * middleX + pixel;
  const both = sumXY / area - middleY * middleX;
  const determinant = rows * columns - both * both;
  let corners = 0;
  eachPixel((y, x) => {
    const [down, across] = [y - middleY, x - middleX];
    const squared = (columns * down * down - 2 * both * down * across + rows * across * across) / determinant;
    if (squared > 4.5) corners += 1;
  });
  return Math.abs(area / (12 * Math.sqrt(determinant)) - 1) < 0.012 && corners > 0.035 * area;
}

function count(data) {
  const histogram = new Array(256).fill(0);
  for (let i = 0; i < data.length; i++) histogram[data[i]]++;
  return histogram;
}

/** Whether less than a fifth of an image is far from its darkest and its lightest level: a drawing or a scan. */
function isTwoLevel(gray) {
  const [darkest, lightest] = [255 - highest(inverted(gray).data), highest(gray.data)];
  const far = (lightest - darkest) >> 3;
  return 5 * gray.data.filter((level) => Math.min(level - darkest, lightest - level) > far).length < gray.data.length;
}

/** NumPy's percentile with method="lower". */
function percentile(values, percent) {
  const rank = Math.floor(((values.length - 1) * percent) / 100);
  let below = 0;
  return count(values).findIndex((number) => (below += number) > rank);
}

/** The value of the pixel of this rank from above. */
function largest(histogram, rank) {
  let above = 0;
  return 255 - [...histogram].reverse().findIndex((number) => (above += number) >= rank);
}

/**
 * The two components of the mask with the most ink, each with the parts near it, as masks. Components at the border of
 * the image count little: they are shadows or lines. So do flat ones, which are lines on the paper. If a box, a ring or
 * a table is drawn around components, even with a gap, only these are searched.
 */
function findDigits(ink, mask) {
  const { width, height } = ink;
  const parts = new Map();
  for (const run of findRuns(mask)) {
    const found = parts.get(run.root) ?? { weight: 0, top: height, bottom: 0, left: width, right: 0, runs: [] };
    for (let x = run.start; x < run.end; x++) found.weight += ink.data[run.row * width + x];
    found.top = Math.min(found.top, run.row);
    found.bottom = Math.max(found.bottom, run.row + 1);
    found.left = Math.min(found.left, run.start);
    found.right = Math.max(found.right, run.end);
    found.runs.push(run);
    parts.set(run.root, found);
  }
  const edge = Math.max(width, height) >= 64 ? 1 : 0;
  const list = [...parts.entries()].sort((a, b) => a[0] - b[0]).map(([, part]) => part);
  for (const part of list) {
    const { top, bottom, left, right } = part;
    part.atBorder = top <= edge || left <= edge || bottom >= height - edge || right >= width - edge;
    part.size = Math.max(bottom - top, right - left);
    part.isFlat = 8 * (bottom - top) <= right - left;
    part.score = part.atBorder || part.isFlat ? 3 * part.weight : 100 * part.weight;
  }
  const draw = (chosen) => {
    const data = new Uint8Array(width * height);
    for (const part of chosen)
      for (const run of part.runs) data.fill(1, run.row * width + run.start, run.row * width + run.end);
    return { width, height, data };
  };
  for (const outer of [...list].sort((a, b) => b.size - a.size).slice(0, 3)) {
    const isInner = ({ top, bottom, left, right }) =>
      top > outer.top && bottom < outer.bottom && left > outer.left && right < outer.right;
    const inner = list.filter(isInner);
    const largest = Math.max(0, ...inner.map(({ size }) => size));
    if (10 * largest < outer.size) continue;
    const [outline, within] = [draw([outer]), draw(inner)];
    const filled = enclose(outline);
    const area = sum(filled.data); // of what is thin and round or square, not the outline of a digit
    const least = 10 * largest > 3 * outer.size ? 7 : 9; // a table: it is square, and no 0 with a speck in it
    const isFrame = 2 * sum(outline.data) < area && 10 * area > least * crop(outline).data.length;
    if (isFrame && 10 * sum(inside(filled, within)) > 9 * sum(within.data)) return findDigits(ink, within);
  }
  const firsts = [...list].sort((a, b) => b.score - a.score).slice(0, 2);
  return firsts.map((first) => {
    const chosen = new Set([first]);
    let { top, bottom, left, right, weight } = first;
    while (!first.isFlat) {
      const side = Math.max(bottom - top, right - left);
      const more = list.filter((part) => {
        const gap = Math.max(top - part.bottom, part.top - bottom, left - part.right, part.left - right);
        const isNear = (first.atBorder || !part.atBorder) && 10 * gap <= 3 * side;
        const isLine = part.isFlat && part.right - part.left > right - left; // under the digit
        return !chosen.has(part) && isNear && !isLine && 50 * part.weight >= weight && 50 * part.size >= 3 * side;
      });
      if (!more.length) break;
      for (const part of more) {
        chosen.add(part);
        weight += part.weight;
        [top, bottom] = [Math.min(top, part.top), Math.max(bottom, part.bottom)];
        [left, right] = [Math.min(left, part.left), Math.max(right, part.right)];
      }
    }
    return draw(chosen);
  });
}

/**
 * Horizontal runs of the mask in reading order, each with the first run of its component as `root`, by union-find.
 * Runs that touch at a corner belong together.
 */
function findRuns({ width, height, data }) {
  const runs = [];
  for (let row = 0; row < height; row++)
    for (let x = 0; x < width; x++) {
      if (!data[row * width + x]) continue;
      const start = x;
      while (x < width && data[row * width + x]) x++;
      runs.push({ row, start, end: x });
    }
  const parent = runs.map((_, i) => i);
  const root = (run) => {
    while (parent[run] !== run) run = parent[run] = parent[parent[run]];
    return run;
  };
  let above = 0;
  runs.forEach(({ row, start, end }, run) => {
    while (runs[above].row < row - 1 || (runs[above].row === row - 1 && runs[above].end < start)) above++;
    for (let other = above; other < run && runs[other].row === row - 1 && runs[other].start <= end; other++) {
      const [first, second] = [root(other), root(run)].sort((a, b) => a - b);
      parent[second] = first;
    }
  });
  runs.forEach((run, i) => (run.root = root(i)));
  return runs;
}

/** The digit as a mask whose longer side has `length` pixels: where its ink has half of `contrast`. */
function magnify(ink, digit, contrast, length) {
  const [top, bottom, left, right] = bounds(digit);
  const near = slidingMax(digit, 3).data;
  const soft = mapped(ink, (value, i) => (near[i] ? Math.min(Math.floor((value * 255) / contrast), 255) : 0));
  const box = cut(padded(soft, 2), top, bottom + 4, left, right + 4);
  const scale = length / Math.max(bottom - top, right - left);
  const mask = mapped(resize(box, box.width * scale, box.height * scale), (value) => (value > 127 ? 1 : 0));
  return mask.data.includes(1) ? crop(mask) : { width: 1, height: 1, data: new Uint8Array([1]) };
}

/** Mean width of strokes, in pixels: twice the area over the perimeter, by Crofton's formula along four directions. */
function strokeWidth(mask) {
  const { width, height, data } = padded(mask, 1);
  let [area, straight, diagonal] = [0, 0, 0];
  for (let y = 0; y < height - 1; y++)
    for (let x = 0; x < width - 1; x++) {
      const i = y * width + x;
      area += data[i];
      straight += (data[i] !== data[i + 1]) + (data[i] !== data[i + width]);
      diagonal += (data[i] !== data[i + width + 1]) + (data[i + 1] !== data[i + width]);
    }
  return (2 * area) / ((Math.PI / 8) * (straight + diagonal / Math.SQRT2));
}

/** The mask with strokes of the width STROKE. That changes its size, so it is done up to three times. */
function setStrokeWidth(mask) {
  for (let i = 0; i < 3; i++) {
    const side = Math.max(mask.width, mask.height);
    const radius = (STROKE * side - strokeWidth(mask)) / (2 * (1 - STROKE));
    if (Math.abs(radius) < 0.5) break;
    const limit = Math.min(Math.trunc(Math.abs(radius)) + 1, 40);
    const wide = padded(mask, limit + 1);
    const isThicker = radius > 0;
    const distances = squaredDistances(isThicker ? wide : mapped(wide, (value) => 1 - value), limit);
    const isNear = (_, j) => (distances[j] <= radius * radius ? 1 : 0);
    const isFar = (_, j) => (distances[j] > radius * radius ? 1 : 0);
    const changed = mapped(wide, isThicker ? isNear : isFar);
    if (!changed.data.includes(1)) break;
    mask = crop(changed);
  }
  return mask;
}

/** Squared distance of each pixel to the nearest one of the mask, exact up to `limit` pixels. */
function squaredDistances({ width, height, data }, limit) {
  const column = new Int32Array(data.length); // along columns
  for (let i = 0; i < data.length; i++) column[i] = data[i] ? 0 : limit + 1;
  for (let i = width; i < data.length; i++) column[i] = Math.min(column[i], column[i - width] + 1);
  for (let i = data.length - width - 1; i >= 0; i--) column[i] = Math.min(column[i], column[i + width] + 1);
  for (let i = 0; i < data.length; i++) column[i] *= column[i];
  const squared = new Int32Array(data.length);
  for (let y = 0; y < height; y++)
    for (let x = 0; x < width; x++) {
      const i = y * width + x;
      let least = column[i];
      for (let step = 1; step <= limit && step * step < least; step++) {
        if (x >= step) least = Math.min(least, column[i - step] + step * step);
        if (x + step < width) least = Math.min(least, column[i + step] + step * step);
      }
      squared[i] = least;
    }
  return squared;
}

/**
 * The mask without the straight lines of a form: the same mask if it has none. Lines are taken away one by one. They are
 * lines of a form if all are at most about half as wide as the strokes of the rest, and one is long enough for its width.
 */
function dropLines(mask) {
  const [top, bottom, left, right] = bounds(mask);
  let [rest, found] = [cut(mask, top, bottom, left, right), mask];
  const lines = [];
  // Squared paper has many.
  for (let i = 0; i < 40; i++) {
    const [line, turned] = [dropLine(rest), dropLine(transpose(rest))];
    const isTurned = turned.length * line.width > line.length * turned.width; // the more slender one
    lines.push(isTurned ? turned : line);
    if (!lines[i].length) break;
    rest = isTurned ? transpose(turned.rest) : line.rest;
    const large = dropSmall(rest);
    const { width, height } = crop(large);
    const [side, stroke] = [Math.max(width, height), strokeWidth(large)];
    // The wider a line, the longer it must be: a digit has straight strokes of its own.
    const isLong = lines.some(
      ({ length, width }) => length * stroke > 2 * side * width && 5 * length > 3 * side,
    );
    const isThin = lines.every(({ length, width }) => 20 * width < 11 * stroke && 10 * length > 3 * side);
    if (!isLong || !isThin || 10 * stroke >= 3 * side) continue; // wider, it is a blot where thin strokes cross
    found = { width: mask.width, height: mask.height, data: new Uint8Array(mask.data.length) };
    for (let y = 0; y < large.height; y++)
      found.data.set(large.data.subarray(y * large.width, (y + 1) * large.width), (top + y) * mask.width + left);
  }
  return found;
}

/**
 * Length and width of the line, at most 18° from the rows, on which most of the thin vertical runs lie, and the rest of
 * the mask, with what crosses the line (a Hough transform). A length of 0 if there is none.
 */
function dropLine(mask) {
  const { width, height, data } = mask;
  const none = { length: 0, width: 1 };
  const runs = findRuns(transpose(mask)).map(({ row, start, end }) => ({ column: row, start, end, tall: end - start }));
  const isThin = ({ tall }) => tall <= Math.max(3, Math.floor(Math.max(width, height) / 12));
  const [most, third] = [Math.floor(width / 6), Math.floor(width / 3)];
  let best = { votes: 0 };
  for (let rise = -2 * most; rise <= 2 * most; rise += 2) {
    const votes = new Uint16Array(height + 2 * third + 4);
    for (const run of runs)
      if (isThin(run))
        votes[
          Math.floor(((run.start + run.end - 1) * width - 2 * rise * run.column) / (2 * width)) + third + 1
        ] += 1;
    for (let row = 0; row + 1 < votes.length; row++)
      if (votes[row] + votes[row + 1] > best.votes) best = { votes: votes[row] + votes[row + 1], row: row - third, rise };
  }
  const rowOf = (column) => best.row + Math.floor((best.rise * column) / width);
  const off = ({ column, start, end }) => Math.abs(start + end - 1 - 2 * rowOf(column));
  const onLine = runs.filter((run) => isThin(run) && off(run) <= 3);
  if (!onLine.length) return none;
  let [first, last] = [0, 0];
  for (let x = 0, start = 0; x < width; x++) {
    const row = rowOf(x);
    const near = [-1, 0, 1].map((step) => clamp(row + step, 0, height - 1));
    const isOn = row >= 0 && row < height && near.some((y) => data[y * width + x]);
    if (!isOn) start = x + 1;
    else if (x + 1 - start > last - first) [first, last] = [start, x + 1];
  }
  const lineWidth = percentile(onLine.map(({ tall }) => tall), 50);
  const isGone = (run) =>
    2 * run.tall <= 3 * lineWidth + 2 && off(run) <= lineWidth + 3 && first <= run.column && run.column < last;
  const gone = runs.filter(isGone);
  // Most of it is in strokes, or it is all that there is.
  const isNone = 4 * new Set(gone.map(({ column }) => column)).size < last - first || gone.length === runs.length;
  if (last === first || isNone) return none;
  const rest = { width, height, data: data.slice() };
  for (const { column, start, end } of gone) for (let y = start; y < end; y++) rest.data[y * width + column] = 0;
  return { length: last - first, width: lineWidth, rest };
}

/** The components whose bounding box has at least 0.15 of the longest side of any. */
function dropSmall(mask) {
  const boxes = new Map();
  const runs = findRuns(mask);
  for (const { root, row, start, end } of runs) {
    const box = boxes.get(root) ?? { top: row, left: start, right: end };
    boxes.set(root, { ...box, bottom: row + 1, left: Math.min(box.left, start), right: Math.max(box.right, end) });
  }
  const side = ({ top, bottom, left, right }) => Math.max(bottom - top, right - left);
  const longest = Math.max(...[...boxes.values()].map(side));
  const data = new Uint8Array(mask.data.length);
  for (const { root, row, start, end } of runs)
    if (20 * side(boxes.get(root)) >= 3 * longest) data.fill(1, row * mask.width + start, row * mask.width + end);
  return { width: mask.width, height: mask.height, data };
}

/** The mask in gray, scaled into the box, with its center of mass at the center of the frame. */
function place(mask) {
  const scale = BOX / Math.max(mask.width, mask.height);
  const white = mapped(mask, (value) => 255 * value);
  const gray = resize(white, mask.width * scale, mask.height * scale);
  const largest = highest(gray.data);
  const digit = mapped(gray, (value) => Math.floor((value * 255) / largest));
  const sides = [digit.height, digit.width];
  const [top, left] = centerOfMass(digit).map((middle, i) => clamp(round(SIDE / 2 - middle), 0, SIDE - sides[i]));
  const frame = new Uint8Array(SIDE * SIDE);
  for (let y = 0; y < digit.height; y++)
    frame.set(digit.data.subarray(y * digit.width, (y + 1) * digit.width), (top + y) * SIDE + left);
  return frame;
}

function whyNoDigit(candidate, contrast, relativeWidth) {
  const { score, digit } = candidate;
  const [top, bottom, left, right] = bounds(digit);
  const { width, height } = digit;
  if (score < 0 && contrast < 3 * LEAST_CONTRAST) return "the image is blank";
  if (Math.max(bottom - top, right - left) < SPECK * Math.max(height, width)) return "there are only specks";
  if (relativeWidth > 0.42) return "there is only a dot";
  const isRow = right - left >= 0.95 * width && bottom - top < 0.15 * height;
  const isColumn = bottom - top >= 0.95 * height && right - left < 0.15 * width;
  if (isRow || isColumn) return "there is only a line";
  return preference(candidate) < 0 ? "the image is blank" : null;
}

// What `deskew` brings an image of 28x28 to, in pixels; named and explained as in Python.
const MOST_SLANT = 1.2;
const ROW_DEVIATION = 7.4;
const COLUMN_DEVIATION = 5.4;
const COLUMN_DEVIATIONS = [1.6, 6.0];
const LEAST_VARIANCE = 0.3;

/** The digit upright and of one size by its second moments: the 784 bytes of a frame, from those of another. */
export function deskew(bytes) {
  if (bytes.every((byte) => byte === bytes[0])) return bytes;
  let [total, row, column, rows, columns, products] = [0, 0, 0, 0, 0, 0]; // exact: all below 2 ** 53
  bytes.forEach((mass, i) => {
    const [y, x] = [Math.floor(i / SIDE), i % SIDE];
    total += mass;
    row += mass * y;
    column += mass * x;
    rows += mass * y * y;
    columns += mass * x * x;
    products += mass * y * x;
  });
  const squared = total * total;
  const rowVariance = Math.max((total * rows - row * row) / squared, LEAST_VARIANCE);
  const covariance = (total * products - row * column) / squared;
  const slant = clamp(covariance / rowVariance, -MOST_SLANT, MOST_SLANT);
  const columnVariance =
    (total * columns - column * column) / squared - 2 * slant * covariance + slant * slant * rowVariance;
  const [height, width] = [Math.sqrt(rowVariance), Math.sqrt(Math.max(columnVariance, LEAST_VARIANCE))];
  const newWidth = clamp(Math.sqrt(width * (ROW_DEVIATION / height) * COLUMN_DEVIATION), ...COLUMN_DEVIATIONS);
  const middle = (SIDE - 1) / 2;
  const result = new Uint8Array(SIDE * SIDE);
  const pixel = (y, x) => (y >= 0 && y < SIDE && x >= 0 && x < SIDE ? bytes[y * SIDE + x] : 0); // black outside
  for (let r = 0; r < SIDE; r++) {
    const down = (r - middle) * (height / ROW_DEVIATION);
    const [y, below] = neighbors(row / total + down);
    for (let c = 0; c < SIDE; c++) {
      const [x, after] = neighbors(column / total + (c - middle) * (width / newWidth) + slant * down);
      const [left, right] = [x, x + 1].map((at) => pixel(y, at) * (1 - below) + pixel(y + 1, at) * below);
      result[r * SIDE + c] = round(left * (1 - after) + right * after);
    }
  }
  return result;
}

/** The pixel before a position, and the weight of the pixel after it. Shifted by one as in Python, which rounds. */
function neighbors(position) {
  const shifted = clamp(position, -1, SIDE) + 1;
  const first = Math.floor(shifted);
  return [first - 1, shifted - first];
}

/** Bytes to the network's inputs, in the processor's float32 arithmetic. */
export function normalize(bytes, mean, std) {
  const f = Math.fround;
  return Array.from(bytes, (byte) => f(f(f(byte / 255) - f(mean)) / f(std)));
}
