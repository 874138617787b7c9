// The network view: one digit through every stage. The state (checkpoint, image, step, chosen number, changed weights)
// is here; stages.js says what is shown, terms.js what each number was made of, inspector.js shows a chosen number.

import { CHECKPOINTS, MOST_SHOWN, loadNetwork } from "./checkpoints.js";
import { EXAMPLES } from "./digits.js";
import { countParameters, isParameter, offset, valueOf } from "./terms.js";
import { deskew, normalize } from "./frame.js";
import { element, find, percent, signed } from "./dom.js";
import { HeatMap, inkColor, onSchemeChange, paint, signedColor } from "./heatmap.js";
import { showNumber } from "./inspector.js";
import { decodeImage, decodeLink, encodeLink } from "./link.js";
import { makeStages } from "./stages.js";
import { argmax } from "./vit.js";

const START = 5; // the example of which the network tiny is not quite sure
const LARGEST = 100; // of a changed weight, far above all trained ones

const state = {
  model: null, // its name in CHECKPOINTS
  network: null, // as loadNetwork returns it; its weights are changed here
  drawing: null, // {bytes, isUpright, example}: 28x28 bytes, whether they are deskewed, and which example they are
  image: null, // the drawing as the network gets it
  step: 0, // from 1; 0 before the first
  values: null, // all traced numbers of the image
  result: null,
  chosen: null, // {name, index} of the number in the panel
  kept: null, // {name, index} of the number that comes back when the pointer leaves another
  edits: new Map(), // "name offset" to the trained value
};
let stages = [];
let maps = [];
let bars = [];
let places = new Map(); // "name index" to where the number is shown: [map, row, column]
let marks = [];
let editMarks = [];

const key = (name, index) => `${name} ${index}`;
const value = (name, index) => valueOf(state.network.vit, state.values, name, index);

// ---- the numbers

function compute() {
  const { vit, mean, std } = state.network;
  ({ result: state.result, values: state.values } = vit.trace(normalize(state.image, mean, std)));
}

/** Change a weight; null puts the trained value back. */
function edit(name, index, changed) {
  const { shape, data } = state.network.vit.tensors[name];
  const at = offset(shape, index);
  const id = key(name, at);
  const trained = state.edits.get(id)?.trained ?? data[at];
  data[at] = Math.min(Math.max(changed ?? trained, -LARGEST), LARGEST);
  if (data[at] === trained) state.edits.delete(id);
  else state.edits.set(id, { name, index, trained });
  compute();
  draw();
}

function resetEdits() {
  for (const { name, index, trained } of state.edits.values()) {
    const { shape, data } = state.network.vit.tensors[name];
    data[offset(shape, index)] = trained;
  }
  state.edits.clear();
  compute();
  draw();
}

// ---- the page, once per network

const listener = {
  show: (map, row, column) => choose(...map.at(row, column)),
  leave: () => state.kept && choose(state.kept.name, state.kept.index),
  pick: (map, row, column) => {
    choose(...map.at(row, column), true);
    reveal(map, row);
  },
};

function build(node) {
  if (typeof node === "string") return element("span", { className: "sign" }, node);
  if (node.bars) {
    const list = element("div", { role: "group", "aria-label": `Bars of the ${node.bars}` });
    bars.push({ kind: node.bars, list });
    return element("div", { className: "bars" }, element("p", {}, node.caption), list);
  }
  for (const kind of ["row", "stack"])
    if (node[kind])
      return element("div", { className: node.isShort ? `${kind} short` : kind }, ...node[kind].map(build));
  if (node.grid) {
    const grid = element("div", { className: "grid" }, ...node.grid.map(build));
    grid.style.setProperty("--across", node.columns);
    return grid;
  }
  const map = new HeatMap(node, listener);
  if (node.isWide) map.element.classList.add("wide");
  maps.push(map);
  for (let row = 0; row < map.rows; row++)
    for (let column = 0; column < map.columns; column++) {
      const id = key(...map.at(row, column));
      if (!places.has(id)) places.set(id, []);
      places.get(id).push([map, row, column]);
    }
  return map.element;
}

function buildStages() {
  const { vit } = state.network;
  [maps, bars, marks, editMarks, places] = [[], [], [], [], new Map()];
  stages = makeStages(vit, state.network).map((stage, i) => {
    const before = maps.length;
    const content = build(stage.content);
    const own = maps.slice(before);
    const text = element("p", { className: "sentences" });
    const legend = element("ul", { className: "legend", "aria-label": "Scales of colors" });
    const title = element("h2", { id: `stage-${i + 1}`, tabindex: -1 }, element("span", {}, `${i + 1}. `), stage.title);
    const section = element("section", { className: "stage", "aria-labelledby": title.id });
    section.append(title, text, content, legend);
    return { ...stage, maps: own, scales: [...new Set(own.map((map) => map.scale))], section, text, legend };
  });
  find("stages").replaceChildren(...stages.map(({ section }) => section));
  const parts = countParameters(vit);
  const total = parts.reduce((sum, { count }) => sum + count, 0).toLocaleString("en");
  find("total").textContent = total;
  find("counter").replaceChildren(
    ...parts.map(({ part, count }) => element("li", {}, element("b", {}, String(count)), ` ${part}`)),
    element("li", {}, element("b", {}, total), " parameters"),
  );
}

// ---- what changes with every digit and weight

/** How numbers of a scale become colors in a stage: {color, low, high}. */
function colorScale(scale, own) {
  const { mean, std } = state.network;
  if (scale === "pixels") {
    const [low, high] = [-mean / std, (1 - mean) / std];
    return { low, high, color: (x) => inkColor((x - low) / (high - low)) };
  }
  if (scale === "attention") return { low: 0, high: 1, color: signedColor };
  let high = 1e-6;
  for (const map of own)
    for (let row = 0; row < map.rows; row++)
      for (let column = 0; column < map.columns; column++)
        high = Math.max(high, Math.abs(value(...map.at(row, column))));
  return { low: -high, high, color: (x) => signedColor(x / high) };
}

const scaleName = { pixels: "pixels", attention: "shares" };

function drawStages() {
  for (const stage of stages) {
    stage.text.textContent = stage.sentences(state.values, state.result).join(" ");
    const legends = stage.scales.map((scale) => {
      const own = stage.maps.filter((map) => map.scale === scale);
      const { low, high, color } = colorScale(scale, own);
      for (const map of own) map.draw(value, color);
      const strip = element("canvas", { "aria-hidden": "true" });
      paint(strip, 1, 49, (_, i) => color(low + ((high - low) * i) / 48));
      const [start, end] = [low, high].map((x) => signed(x, Math.abs(x) >= 10 ? 0 : 1));
      return element("li", {}, `${scaleName[scale] ?? scale}: ${start}`, strip, end);
    });
    stage.legend.replaceChildren(...legends);
  }
}

function drawBars() {
  const { vit } = state.network;
  const { logits, probabilities } = state.result;
  const best = argmax(probabilities);
  for (const { kind, list } of bars) {
    const name = kind === "logits" ? "head" : "probabilities";
    const contributions = kind === "logits" ? logits.map((_, i) => logitTerms(i)) : probabilities.map((p) => [p]);
    const sums = (sign) => contributions.map((terms) => terms.reduce((sum, x) => sum + Math.max(sign * x, 0), 0));
    const [low, high] = kind === "logits" ? [-Math.max(...sums(-1)), Math.max(...sums(1))] : [0, 1];
    const x = (number) => (100 * (number - low)) / (high - low);
    const rows = contributions.map((terms, i) => {
      const room = element("div", { className: "room" });
      const ends = { true: 0, false: 0 };
      for (const term of terms) {
        const [from, to] = [x(ends[term < 0]), x((ends[term < 0] += term))];
        const part = element("i", { className: term < 0 ? "negative" : "" });
        part.style.cssText = `left: ${Math.min(from, to)}%; width: ${Math.abs(to - from)}%`;
        room.append(part);
      }
      for (const [tag, at] of kind === "logits" ? [["s", 0], ["b", logits[i]]] : []) {
        const line = element(tag);
        line.style.left = `${x(at)}%`;
        room.append(line);
      }
      const text = kind === "logits" ? signed(logits[i]) : percent(probabilities[i]);
      return [room, text, i === best];
    });
    if (list.childElementCount !== rows.length) {
      list.replaceChildren(
        ...rows.map((_, i) => {
          const button = element("button", { type: "button" }, element("span", {}, vit.labels[i]), "", element("span"));
          button.addEventListener("pointerenter", () => choose(name, [0, i]));
          button.addEventListener("pointerleave", listener.leave);
          button.addEventListener("focus", () => button.matches(":focus-visible") && choose(name, [0, i]));
          button.addEventListener("click", () => choose(name, [0, i], true));
          return button;
        }),
      );
    }
    rows.forEach(([room, text, isBest], i) => {
      const button = list.children[i];
      button.classList.toggle("best", isBest);
      button.replaceChildren(button.firstChild, room, element("span", {}, text));
    });
  }
}

function logitTerms(output) {
  const { vit } = state.network;
  const row = state.values["vit.norm"][0];
  return [...row.map((x, i) => x * value("head.weight", [output, i])), value("head.bias", [output])];
}

function drawAnswer() {
  const { vit } = state.network;
  const { probabilities, digitScore } = state.result;
  const best = argmax(probabilities);
  const isRejected = digitScore < vit.threshold;
  find("prediction").textContent = isRejected ? "not a digit?" : vit.labels[best];
  find("prediction").classList.toggle("rejected", isRejected);
  find("sure").textContent = isRejected ? "" : percent(probabilities[best]);
  const list = probabilities.map((p, i) => `${vit.labels[i]}: ${percent(p)}`);
  find("shares").setAttribute("aria-label", `Probabilities. ${list.join(", ")}`);
  find("shares").replaceChildren(
    ...probabilities.map((p, i) => {
      const level = element("div");
      level.style.height = `${100 * p}%`;
      const room = element("div", { className: "room" }, level);
      return element("li", { className: i === best ? "best" : "" }, room, vit.labels[i]);
    }),
  );
  const { size } = vit;
  paint(find("digit"), size, size, (y, x) => inkColor(state.image[y * size + x] / 255));
  const count = state.edits.size;
  find("edits").hidden = count === 0;
  find("edits").firstElementChild.textContent = `${count} ${count === 1 ? "weight" : "weights"} changed`;
  for (const mark of editMarks) mark.remove();
  editMarks = [...state.edits.values()].flatMap(({ name, index }) =>
    places.get(key(name, index)).map(([map, row, column]) => map.mark("edited", [row, column])),
  );
}

function draw() {
  drawStages();
  drawBars();
  drawAnswer();
  drawChosen();
}

// ---- the chosen number

function choose(name, index, isKept = false) {
  if (state.chosen?.name === name && `${state.chosen.index}` === `${index}` && !isKept) return;
  state.chosen = { name, index };
  if (isKept) state.kept = state.chosen;
  drawChosen();
}

function release() {
  state.chosen = state.kept = null;
  drawChosen();
}

/** Go to the place of a number, nearest to what is in view. */
function follow(name, index) {
  const middle = innerHeight / 2;
  const distance = ([map]) => {
    const box = map.frame.getBoundingClientRect();
    return Math.abs((box.top + box.bottom) / 2 - middle);
  };
  const [nearest] = [...places.get(key(name, index))].sort((a, b) => distance(a) - distance(b));
  choose(name, index, true);
  const [map, row, column] = nearest;
  map.place = [row, column];
  reveal(map, row);
}

/** Scroll a row of a map into view, which the bar or the sheet of a phone may cover. */
function reveal(map, row) {
  const box = map.frame.getBoundingClientRect();
  const middle = box.top + ((row + 0.5) / map.rows) * box.height;
  const top = find("bar").getBoundingClientRect().bottom;
  const bottom = isWide.matches ? innerHeight : find("inspector").getBoundingClientRect().top;
  if (middle < top + 20 || middle > bottom - 20)
    scrollBy({ top: middle - (top + bottom) / 2, behavior: smoothness() });
}

const isWide = matchMedia("(min-width: 60.01rem)"); // the panel stands beside the stages
const smoothness = () => (matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth");

function drawChosen() {
  for (const mark of marks) mark.remove();
  marks = [];
  const { chosen } = state;
  find("inspector").classList.toggle("active", chosen !== null);
  find("close").hidden = state.kept === null;
  find("thumb").querySelector(".patch")?.remove();
  find("help").hidden = chosen !== null;
  const factors = showNumber(find("reading"), find("details"), state, { edit, follow });
  if (!chosen) return;

  // Around everything that the number was made of, one box per map.
  const boxes = new Map();
  for (const { name, index } of factors)
    for (const [map, row, column] of places.get(key(name, index)) ?? []) {
      const [[top, left], [bottom, right]] = boxes.get(map) ?? [[row, column], [row, column]];
      boxes.set(map, [
        [Math.min(top, row), Math.min(left, column)],
        [Math.max(bottom, row), Math.max(right, column)],
      ]);
    }
  for (const [map, corners] of boxes) marks.push(map.mark("related", ...corners));
  for (const [map, row, column] of places.get(key(chosen.name, chosen.index)) ?? [])
    marks.push(map.mark("chosen", [row, column]));
  markPatch(chosen);
}

/** Show on the small digit of which patch a number is. */
function markPatch({ name, index }) {
  const { vit } = state.network;
  const side = vit.size / vit.patch;
  let patch = null;
  if (name === "pixel_values") patch = Math.floor(index[0] / vit.patch) * side + Math.floor(index[1] / vit.patch);
  else if (name === "vit.patch_embed") patch = index[0];
  else if (name === "vit.pos_embed") patch = index[1] - 1;
  else if (/scores|probabilities/.test(name) && index.length === 3) patch = index[2] - 1;
  else if (!isParameter(vit, name) && index.length === 2) patch = index[0] - 1;
  if (patch === null || patch < 0 || name === "head" || name === "probabilities") return;
  const box = element("div", { className: "patch" });
  box.style.cssText = `--side: ${side}; --top: ${Math.floor(patch / side)}; --left: ${patch % side}`;
  find("thumb").append(box);
}

// ---- steps, links

function goTo(step, scrolls = true) {
  state.step = Math.min(Math.max(step, 0), stages.length);
  stages.forEach(({ section }, i) => section.classList.toggle("current", i + 1 === state.step));
  find("position").textContent = state.step ? `${state.step} of ${stages.length}` : `${stages.length} steps`;
  find("previous").disabled = state.step === 0;
  find("next").disabled = state.step === stages.length;
  if (state.step && scrolls) {
    const { section } = stages[state.step - 1];
    section.scrollIntoView({ behavior: smoothness(), block: "start" });
    section.querySelector("h2").focus({ preventScroll: true }); // screen readers read on from here
    state.kept = null;
    if (isWide.matches) choose(...stages[state.step - 1].example(state.values));
    else release();
  } else if (scrolls) {
    scrollTo({ top: 0, behavior: smoothness() });
  }
  updateLink();
}

function updateLink() {
  history.replaceState(null, "", `#${encodeLink(state)}`);
  find("copied").textContent = "";
}

async function copyLink() {
  try {
    await navigator.clipboard.writeText(location.href);
    find("copied").textContent = "copied";
  } catch {
    find("copied").textContent = "The link is this page's address.";
  }
}

function report(problems) {
  find("problem").textContent = problems.join(" ");
  find("problem").hidden = problems.length === 0;
}

// ---- the digit and the network

/** Show a drawing, deskewed if the network wants that. */
function setDrawing(drawing) {
  state.drawing = drawing;
  if (!state.network) return;
  state.image = state.network.deskews && !drawing.isUpright ? deskew(drawing.bytes) : drawing.bytes;
  compute();
  draw();
  for (const [i, button] of [...find("examples").children].entries())
    button.setAttribute("aria-pressed", drawing.example === i);
}

const exampleDrawing = (example) => ({ bytes: decodeImage(EXAMPLES[example].image), isUpright: false, example });

/** {network, problem} of a checkpoint: a sentence says why it cannot be shown. */
async function tryNetwork(model) {
  try {
    const network = await loadNetwork(model);
    const count = network.vit.countParameters();
    if (count <= MOST_SHOWN) return { network, problem: null };
    const size = count.toLocaleString("en");
    const problem = `The network ${model} has ${size} parameters: too many for a page on which each has a place.`;
    return { network, problem };
  } catch (error) {
    return { network: null, problem: `The network ${model} cannot be loaded: ${error.message}` };
  }
}

function useNetwork(model, network) {
  Object.assign(state, { model, network, chosen: null, kept: null });
  state.edits.clear();
  buildStages();
  setDrawing(state.drawing);
}

const checkModel = () => radios().forEach((input) => (input.checked = input.value === state.model));
const radios = () => document.querySelectorAll("input[name=model]");
let loads = 0;

/** Show the network that was asked for, or else the first that can be shown. */
async function openLink() {
  const load = ++loads;
  const { model, image, step, problems } = decodeLink(location.hash);
  if (location.hash.length > 1 && image === null) problems.push("An example digit is shown.");
  const names = Object.keys(CHECKPOINTS);
  const drawing = image ? { bytes: image, isUpright: false } : exampleDrawing(START);
  const wanted = model ?? names[0];
  for (const name of new Set([wanted, ...names])) {
    const { network, problem } = await tryNetwork(name);
    if (load !== loads) return; // another was asked for meanwhile
    if (image && name === model) drawing.isUpright = Boolean(network?.deskews); // links carry what their network got
    state.drawing = drawing;
    if (problem && name === wanted) problems.push(problem);
    if (problem) continue;
    useNetwork(name, network);
    if (name !== wanted) problems.push(`This is the network ${name}.`);
    goTo(step ?? 0, step !== null);
    break;
  }
  checkModel();
  report(problems);
}

async function chooseModel(name) {
  const load = ++loads;
  const { network, problem } = await tryNetwork(name);
  if (load !== loads) return;
  if (problem) {
    report([problem, state.model ? `The page still shows ${state.model}.` : "Choose another one."]);
  } else {
    useNetwork(name, network);
    goTo(state.step, false);
    report([]);
  }
  checkModel();
}

find("examples").append(
  ...EXAMPLES.map(({ label, image }, i) => {
    const canvas = element("canvas", { "aria-hidden": "true" });
    const button = element("button", { type: "button", "aria-label": `Example: ${label}` }, canvas);
    const bytes = decodeImage(image);
    const show = () => paint(canvas, 28, 28, (y, x) => inkColor(bytes[y * 28 + x] / 255));
    show();
    onSchemeChange(show);
    button.addEventListener("click", () => {
      setDrawing(exampleDrawing(i));
      if (!state.network) return;
      report([]);
      updateLink();
    });
    return button;
  }),
);

find("networks").append(
  ...Object.keys(CHECKPOINTS).map((name) => {
    const input = element("input", { type: "radio", name: "model", value: name });
    input.addEventListener("change", () => chooseModel(name));
    return element("label", {}, input, ` ${name}`);
  }),
);

find("previous").addEventListener("click", () => goTo(state.step - 1));
find("next").addEventListener("click", () => goTo(state.step + 1));
find("copy").addEventListener("click", copyLink);
find("reset").addEventListener("click", resetEdits);
find("close").addEventListener("click", release);
addEventListener("hashchange", openLink);
onSchemeChange(() => state.network && draw());
addEventListener("keydown", (event) => {
  if (event.key === "Escape") release();
  if (event.altKey || event.ctrlKey || event.metaKey || event.target.closest("input, .map")) return;
  const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!by || !stages.length) return;
  goTo(state.step + by);
  event.preventDefault();
});

await openLink();
