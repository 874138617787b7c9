// Pictures to click that are drawn here. Those of MNIST are in digits.js.

/** Strokes on the pad: an M, which is no digit. */
export const LETTER = [
  [[60, 225], [85, 60], [140, 175], [195, 60], [220, 225]],
];

/** Numbers in [0, 1), the same on every page: a linear congruential generator. */
function random() {
  let state = 1;
  return () => (state = (1664525 * state + 1013904223) % 2 ** 32) / 2 ** 32;
}

/** A canvas of 480x360 pixels with shading from the left to the right, noise, and what `draw(context)` draws. */
function photograph(left, right, draw) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [480, 360];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const shading = context.createLinearGradient(0, 0, 480, 200);
  shading.addColorStop(0, left);
  shading.addColorStop(1, right);
  context.fillStyle = shading;
  context.fillRect(0, 0, 480, 360);
  context.lineCap = context.lineJoin = "round";
  draw(context);
  const image = context.getImageData(0, 0, 480, 360);
  const next = random();
  for (let i = 0; i < image.data.length; i += 4) {
    const noise = 14 * (next() - 0.5);
    for (let channel = 0; channel < 3; channel++) image.data[i + channel] += noise;
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

function stroke(context, color, width, path) {
  Object.assign(context, { strokeStyle: color, lineWidth: width });
  context.stroke(new Path2D(path));
}

/** A 5 in blue ink on ruled paper, in the shadow of something at the right. */
export function ruledPaper() {
  return photograph("#f3eee0", "#a39b8b", (context) => {
    for (let y = 40; y < 360; y += 40) stroke(context, "#8fa3c455", 2, `M0 ${y}h480`);
    stroke(context, "#c0606070", 2, "M70 0v360");
    stroke(context, "#24356f", 8, "M296 92l-70 6l-12 66q74 -18 82 40q4 60 -54 62q-34 0 -48 -24");
  });
}

/** A 3 in chalk on a blackboard. */
export function blackboard() {
  return photograph("#2f4038", "#1d2a25", (context) => {
    for (let i = 0; i < 5; i++) stroke(context, "#ffffff0a", 40, `M${i * 110 - 60} ${300 - 20 * i}q160 -90 300 -160`);
    stroke(context, "#e9ece4", 13, "M186 98q64 -34 96 4q16 44 -58 62q82 2 80 58q-20 58 -124 26");
  });
}
