// "How it works": the steps from the picture to the answer, with the numbers of the network and of this digit.

import { nameToken } from "./attention.js";
import { drawInk, element, find, percent, say } from "./dom.js";
import { bounds } from "./frame.js";
import { argmax } from "./vit.js";

const THUMBNAIL = 192; // pixels of the longer side of a picture

/** The sentences that depend only on the network. */
export function describeNetwork({ vit, config, deskews }) {
  const [patches, width] = [(vit.size / vit.patch) ** 2, config.hidden_size];
  const upright = deskews ? " This network gets it upright and in one size." : "";
  say(
    find("explain-frame"),
    "The page finds the ink, scales the digit to 20 pixels, and centers it in 28×28 pixels by its mass, as in MNIST." +
      upright,
  );
  say(
    find("explain-patches"),
    `The ${vit.size}×${vit.size} pixels are cut into ${patches} patches of ${vit.patch}×${vit.patch}.`,
  );
  say(
    find("explain-tokens"),
    `A linear map turns the ${vit.patch ** 2} pixels of a patch into a token of ${width} numbers. Each token gets its ` +
      `position added. One more token, CLS, starts the same for every digit: ${patches + 1} tokens.`,
  );
  say(
    find("explain-attention"),
    `In each of ${vit.layers} layers, ${vit.heads} heads let every token collect from all tokens, in shares that add ` +
      "up to 100 %. Then an MLP changes each token by itself.",
  );
  say(
    find("explain-logits"),
    `A linear map of the last CLS token gives ${vit.labels.length} logits, one for each class. Softmax turns them into ` +
      "probabilities.",
  );
  find("step-upright").hidden = !deskews;
}

/** The sentences and pictures that depend on the digit. `result` is null if there is none. */
export function describeDigit({ vit, deskews }, gray, isInk, framing, bytes, result) {
  // Ink is shown as on the pad: dark on a light page.
  const isLight = matchMedia("(prefers-color-scheme: light)").matches;
  const seen = isInk && isLight && gray ? { ...gray, data: gray.data.map((level) => 255 - level) } : gray;
  drawPicture(find("step-picture").querySelector("canvas"), seen);
  drawFound(find("step-ink").querySelector("canvas"), seen, framing?.digit);
  drawInk(find("step-frame").querySelector("canvas"), framing?.image ?? bytes, 28);
  if (deskews) drawInk(find("step-upright").querySelector("canvas"), bytes, 28);
  say(find("step-ink").querySelector("figcaption"), framing?.isFramed ? "framed already" : "ink found");
  drawPatches(find("cut"), bytes, vit);

  say(find("now-attention"), result ? describeAttention(vit, result) : "");
  say(find("now-logits"), result ? describeLogits(vit, result) : "");
}

function describeLogits(vit, { logits, probabilities, digitScore }) {
  const best = argmax(logits);
  const [logit, share] = [logits[best].toFixed(1), percent(probabilities[best])];
  const largest = `Now the logit of ${vit.labels[best]} is the largest: ${logit}, or ${share}.`;
  if (!Number.isFinite(vit.threshold)) return largest;
  const [score, threshold] = [digitScore.toFixed(1), vit.threshold.toFixed(1)];
  return `${largest} The digit score is ${score}. Below ${threshold}, it is probably no digit.`;
}

function describeAttention(vit, { attentions }) {
  const last = attentions.at(-1);
  const shares = last.map((map) => map[0]);
  const head = argmax(shares.map((row) => Math.max(...row)));
  const token = argmax(shares[head]);
  const name = token === 0 ? "itself" : nameToken(token, vit.size / vit.patch);
  const share = percent(shares[head][token], 0);
  return `Now, in layer ${attentions.length}, CLS gives ${share} of head ${head + 1} to ${name}.`;
}

function drawPicture(canvas, gray) {
  if (!gray) return canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
  const { width, height, data } = gray;
  const full = element("canvas");
  drawOpaque(full, data, width, height);
  const scale = Math.min(1, THUMBNAIL / Math.max(width, height));
  [canvas.width, canvas.height] = [width, height].map((side) => Math.max(1, Math.round(scale * side)));
  canvas.getContext("2d").drawImage(full, 0, 0, canvas.width, canvas.height);
}

function drawOpaque(canvas, data, width, height) {
  [canvas.width, canvas.height] = [width, height];
  const image = new ImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  for (let i = 0; i < data.length; i++) pixels[i] = 0xff000000 | (data[i] * 0x010101);
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/** The picture, with the ink that was found in color and a box around it. */
function drawFound(canvas, gray, digit) {
  drawPicture(canvas, gray);
  if (!digit) return;
  const { mask, left, top, scale } = digit;
  const ink = element("canvas");
  const image = new ImageData(mask.width, mask.height);
  mask.data.forEach((is, i) => is && image.data.set([234, 88, 12, 255], 4 * i));
  [ink.width, ink.height] = [mask.width, mask.height];
  ink.getContext("2d").putImageData(image, 0, 0);
  const context = canvas.getContext("2d");
  const shrink = canvas.width / gray.width;
  context.setTransform(shrink, 0, 0, shrink, 0, 0);
  context.drawImage(ink, left, top, scale * mask.width, scale * mask.height);
  const [first, last, west, east] = bounds(mask);
  const margin = 3 / shrink;
  Object.assign(context, { strokeStyle: "#ea580c", lineWidth: 2 / shrink });
  context.strokeRect(
    left + scale * west - margin,
    top + scale * first - margin,
    scale * (east - west) + 2 * margin,
    scale * (last - first) + 2 * margin,
  );
}

/** The patches of a framed image with gaps between them. */
function drawPatches(canvas, bytes, { size, patch }) {
  const [side, gap] = [size / patch, 1];
  const whole = element("canvas");
  drawOpaque(whole, bytes, size, size);
  canvas.width = canvas.height = size + (side - 1) * gap;
  const context = canvas.getContext("2d");
  for (let row = 0; row < side; row++)
    for (let column = 0; column < side; column++) {
      const [x, y] = [column, row].map((at) => at * (patch + gap));
      context.drawImage(whole, column * patch, row * patch, patch, patch, x, y, patch, patch);
    }
}
