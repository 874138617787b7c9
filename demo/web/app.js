// The page: strokes on the pad -> frame.js -> vit.js -> bars and attention maps, once per animation frame.

import { deskew, frameDigit, normalize } from "./frame.js";
import { Vit, parseSafetensors } from "./vit.js";

// The checkpoint folders of the repository.
const CHECKPOINTS = {
  tiny: "../../vit-mnist-tiny",
  best: "../../vit-mnist-best",
  small: "../../vit-mnist-small",
};
const STROKE = 22; // of the pad's 280 pixels, about the thickness of MNIST's strokes
const STEP = 10; // pixels per press of an arrow key

const find = (id) => document.getElementById(id);
const pad = find("pad");
const ink = pad.getContext("2d", { willReadFrequently: true });
let network = null;
let isDrawn = false;
let isPending = false;

// ---- the checkpoint

async function fetchFile(folder, name) {
  const response = await fetch(`${folder}/${name}`, { cache: "no-cache" }); // the weights may have changed
  if (!response.ok) throw new Error(`${folder}/${name}: ${response.status} ${response.statusText}`);
  return response;
}

async function loadNetwork(folder) {
  const [config, processor, weights] = await Promise.all([
    fetchFile(folder, "config.json").then((response) => response.json()),
    fetchFile(folder, "preprocessor_config.json").then((response) => response.json()),
    fetchFile(folder, "model.safetensors").then((response) => response.arrayBuffer()),
  ]);
  const first = (value) => (Array.isArray(value) ? value[0] : value);
  return {
    vit: new Vit(config, parseSafetensors(weights)),
    mean: first(processor.image_mean),
    std: first(processor.image_std),
    deskews: processor.do_deskew,
  };
}

async function choose(name) {
  try {
    const loaded = await loadNetwork(CHECKPOINTS[name]);
    if (document.querySelector("input[name=checkpoint]:checked").value !== name) return; // the choice changed
    network = loaded;
    find("problem").hidden = true;
    buildAnswer();
    update();
  } catch (error) {
    find("problem").textContent = `The ${name} network cannot be loaded: ${error.message}`;
    find("problem").hidden = false;
  }
}

// ---- the answer

function element(tag, className, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

/** Empty bars for the labels and empty maps for the heads of the chosen network. */
function buildAnswer() {
  const { vit } = network;
  find("probabilities").replaceChildren(
    ...vit.labels.map((label) =>
      element(
        "li",
        "",
        element("span", "", label),
        element("div", "bar", element("div")),
        element("span", "percent", "–"),
      ),
    ),
  );
  const picture = (caption) => {
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = vit.size;
    return element("figure", "", canvas, element("figcaption", "", caption));
  };
  const maps = Array.from({ length: vit.layers * vit.heads }, (_, i) =>
    picture(`layer ${Math.floor(i / vit.heads) + 1}, head ${(i % vit.heads) + 1}`),
  );
  find("attention").replaceChildren(picture("the input"), ...maps);
}

function update() {
  if (!network || isPending) return;
  isPending = true;
  requestAnimationFrame(() => {
    isPending = false;
    show();
  });
}

/** Texts that screen readers read aloud, so only when they change. */
function say(id, text) {
  if (find(id).textContent !== text) find(id).textContent = text;
}

function show() {
  const { vit, mean, std } = network;
  const { data, width, height } = ink.getImageData(0, 0, pad.width, pad.height);
  const gray = Uint8Array.from({ length: width * height }, (_, i) => data[4 * i]); // red, green and blue are equal
  const { image, problem, hasOthers } = frameDigit({ width, height, data: gray });
  const bytes = network.deskews ? deskew(image) : image;
  find("hint").hidden = isDrawn;
  const result = isDrawn && !problem ? vit.forward(normalize(bytes, mean, std)) : null;
  const note = problem ?? (hasOthers ? "more than one digit: the clearest is read" : "");
  say("note", isDrawn ? note : "");

  const isRejected = result !== null && result.digitScore < vit.threshold;
  const best = result && !isRejected ? result.probabilities.indexOf(Math.max(...result.probabilities)) : -1;
  find("reading").classList.toggle("rejected", isRejected);
  say("prediction", isRejected ? "not a digit?" : (vit.labels[best] ?? "–"));
  [...find("probabilities").children].forEach((row, i) => {
    row.classList.toggle("best", i === best);
    row.querySelector(".bar div").style.width = result ? `${100 * result.probabilities[i]}%` : "0";
    row.querySelector(".percent").textContent = result ? `${(100 * result.probabilities[i]).toFixed(1)} %` : "–";
  });

  const [input, ...maps] = document.querySelectorAll("#attention canvas");
  drawMap(input, bytes, null, vit);
  maps.forEach((canvas, i) => {
    const [layer, head] = [Math.floor(i / vit.heads), i % vit.heads];
    drawMap(canvas, bytes, result && result.attentions[layer][head][0].slice(1), vit); // from CLS to the patches
  });
}

/** The digit in gray under one color per patch, whose strength is the patch's weight over the largest weight. */
function drawMap(canvas, bytes, weights, { size, patch }) {
  const image = new ImageData(size, size);
  const largest = weights ? Math.max(...weights) : 1;
  bytes.forEach((byte, i) => {
    const [x, y] = [i % size, Math.floor(i / size)];
    const weight = weights ? weights[Math.floor(y / patch) * (size / patch) + Math.floor(x / patch)] / largest : 0;
    const [red, green, blue] = [250, 120, 20].map((level) => 0.75 * weight * level);
    const light = (weights ? 0.6 : 1) * byte;
    image.data.set([red + light, green + light, blue + light, 255], 4 * i);
  });
  canvas.getContext("2d").putImageData(image, 0, 0);
}

// ---- the pen

const pen = { x: 140, y: 140, isDown: false };

function moveTo(x, y) {
  if (pen.isDown) {
    ink.beginPath();
    ink.moveTo(pen.x, pen.y);
    ink.lineTo(x + 0.01, y); // a line of no length draws no dot
    ink.stroke();
    isDrawn = true;
    update();
  }
  [pen.x, pen.y] = [x, y];
  find("pen").style.left = `${(100 * x) / pad.width}%`;
  find("pen").style.top = `${(100 * y) / pad.height}%`;
  find("pen").classList.toggle("down", pen.isDown);
}

function clear() {
  ink.fillStyle = "#000";
  ink.fillRect(0, 0, pad.width, pad.height);
  ink.strokeStyle = "#fff";
  ink.lineWidth = STROKE;
  ink.lineCap = ink.lineJoin = "round";
  pen.isDown = isDrawn = false;
  moveTo(pen.x, pen.y);
  update();
}

/** Position of a pointer in the pad's own pixels. */
function place(event) {
  const box = pad.getBoundingClientRect();
  return [((event.clientX - box.left) * pad.width) / box.width, ((event.clientY - box.top) * pad.height) / box.height];
}

pad.addEventListener("pointerdown", (event) => {
  if (!event.isPrimary || event.button !== 0) return;
  pad.setPointerCapture(event.pointerId);
  find("pen").hidden = true; // a mouse or finger shows its own position
  pen.isDown = false;
  moveTo(...place(event));
  pen.isDown = true;
  moveTo(...place(event)); // a dot, if it does not move
});

pad.addEventListener("pointermove", (event) => {
  if (!pad.hasPointerCapture(event.pointerId)) return;
  const steps = event.getCoalescedEvents?.() ?? [];
  for (const step of steps.length ? steps : [event]) moveTo(...place(step));
});

for (const end of ["pointerup", "pointercancel"]) pad.addEventListener(end, () => (pen.isDown = false));

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

pad.addEventListener("keydown", (event) => {
  const within = (at) => Math.min(Math.max(at, 0), pad.width);
  if (event.key in ARROWS) {
    const [x, y] = ARROWS[event.key];
    moveTo(within(pen.x + STEP * x), within(pen.y + STEP * y));
  } else if (event.key === " ") {
    pen.isDown = !pen.isDown;
    moveTo(pen.x, pen.y);
  } else if (event.key === "Delete" || event.key === "Backspace") {
    clear();
  } else {
    return;
  }
  find("pen").hidden = false;
  event.preventDefault();
});

find("clear").addEventListener("click", clear);
for (const input of document.querySelectorAll("input[name=checkpoint]"))
  input.addEventListener("change", () => choose(input.value));

clear();
await choose(document.querySelector("input[name=checkpoint]:checked").value);
