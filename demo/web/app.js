// The page: the pad or a picture -> frame.js -> vit.js -> bars, attention maps and steps, once per animation frame.

import { AttentionView } from "./attention.js";
import { CHECKPOINTS, MOST_SHOWN, loadNetwork, loadResults } from "./checkpoints.js";
import { EXAMPLES } from "./digits.js";
import { drawInk, element, find, percent, say } from "./dom.js";
import { LETTER, blackboard, ruledPaper } from "./examples.js";
import { describeDigit, describeNetwork } from "./explain.js";
import { deskew, frameDigit, normalize } from "./frame.js";
import { decodeImage, encodeLink } from "./link.js";
import { Pad } from "./pad.js";
import { readGray, watchPictures } from "./pictures.js";
import { argmax } from "./vit.js";

let network = null;
let followed = null; // the network that the link to network.html opens
let isPending = false;
const pad = new Pad(find("pad"), find("pen"), update);
const attention = new AttentionView();

// ---- the network

let wanted = null; // the name of the checkpoint that was chosen last

async function choose(name) {
  wanted = name;
  say(find("status"), `Loading ${name} …`);
  try {
    const loaded = await loadNetwork(name);
    if (wanted !== name) return; // the choice changed
    network = loaded;
    followed = null;
    build();
    findFollowed(loaded);
    report("");
  } catch (error) {
    if (wanted !== name) return;
    for (const input of radios()) input.checked = input.value === network?.name;
    const now = network ? `The page still uses ${network.name}.` : "Choose a network to try again.";
    report(`The ${name} network cannot be loaded: ${error.message}. ${now}`);
  }
  say(find("status"), "");
}

/** Link to the network itself, or to the first one of the table that network.html can show. */
async function findFollowed(loaded) {
  const isShown = ({ vit }) => vit.countParameters() <= MOST_SHOWN;
  let found = isShown(loaded) ? loaded : null;
  for (const name of Object.keys(CHECKPOINTS)) {
    if (found || network !== loaded) break;
    const other = await loadNetwork(name).catch(() => null);
    if (other && isShown(other)) found = other;
  }
  if (network !== loaded) return; // the choice changed
  followed = found;
  say(find("follow"), `Follow this digit through the ${found === loaded ? "" : `${found?.name} `}network`);
  update();
}

const radios = () => document.querySelectorAll("input[name=checkpoint]");

/** Radio buttons for the checkpoints of the table, with the accuracy that their trainings recorded. */
function listNetworks() {
  for (const name of Object.keys(CHECKPOINTS)) {
    const input = element("input", { type: "radio", name: "checkpoint", value: name });
    const facts = element("small");
    find("networks").append(element("label", {}, input, element("span", {}, `${name} `, facts)));
    input.addEventListener("change", () => choose(name));
    loadResults(name)
      .then(({ parameters, test_accuracy: accuracy, dataset }) => {
        const data = dataset === "ylecun/mnist" ? "MNIST test" : `test of ${dataset}`;
        const share = (100 * accuracy).toFixed(2);
        facts.textContent = `${parameters.toLocaleString("en")} parameters, ${share} % on ${data}`;
      })
      .catch(() => {}); // a checkpoint that was imported has no results
  }
}

function report(problem) {
  find("problem").hidden = !problem;
  say(find("problem"), problem);
}

// ---- the answer

/** Empty bars for the labels and empty maps for the heads of the network. */
function build() {
  const { vit } = network;
  const bar = () => element("div", { className: "bar" }, element("div"));
  const row = (label) =>
    element("li", {}, element("span", {}, label), bar(), element("span", { className: "percent" }, "–"));
  find("probabilities").replaceChildren(...vit.labels.map(row));
  attention.build(vit);
  describeNetwork(network);
  update();
}

function update() {
  find("undo").disabled = !pad.canUndo;
  if (!network || isPending) return;
  isPending = true;
  requestAnimationFrame(() => {
    isPending = false;
    show();
  });
}

function show() {
  const { vit, mean, std } = network;
  const gray = pad.gray;
  find("hint").hidden = gray !== null;
  const framing = gray && frameDigit(gray);
  const image = framing?.image ?? new Uint8Array(vit.size ** 2);
  const bytes = framing && network.deskews ? deskew(image) : image;
  const result = framing && !framing.problem ? vit.forward(normalize(bytes, mean, std)) : null;
  say(find("note"), framing ? advise(framing) : "");

  const isRejected = result !== null && result.digitScore < vit.threshold;
  const best = result && !isRejected ? argmax(result.probabilities) : -1;
  const share = (i) => (result ? percent(result.probabilities[i]) : "–");
  find("reading").classList.toggle("rejected", isRejected);
  say(find("prediction"), isRejected ? "not a digit" : (vit.labels[best] ?? "–"));
  say(find("confidence"), best < 0 ? "" : share(best));
  [...find("probabilities").children].forEach((row, i) => {
    row.classList.toggle("best", i === best);
    row.querySelector(".bar div").style.width = result ? `${100 * result.probabilities[i]}%` : "0";
    say(row.querySelector(".percent"), share(i));
  });
  attention.show(result && result.attentions, bytes);
  describeDigit(network, gray, pad.isInk, framing, bytes, result);
  find("follow").hidden = followed === null;
  const handed = followed?.deskews ? deskew(image) : image; // what that network gets
  if (followed && result) find("follow").href = `network.html#${encodeLink({ model: followed.name, image: handed })}`;
  else if (followed) find("follow").href = `network.html#model=${followed.name}`;
}

/** What the user can do about a picture without one clear digit. */
function advise({ problem, hasOthers }) {
  if (problem) return `${problem[0].toUpperCase()}${problem.slice(1)}: draw one digit, larger.`;
  return hasOthers ? "More than one digit. Draw one digit, larger." : "";
}

// ---- what can be read

function showPicture(canvas, gray = readGray(canvas), isInk = false) {
  report("");
  pad.show(gray, canvas, isInk);
}

function listExamples() {
  function add(label, picture, onClick) {
    const attributes = { className: "example", type: "button", title: label, "aria-label": `Example: ${label}` };
    const button = element("button", attributes, picture);
    button.addEventListener("click", onClick);
    find("examples").append(button);
  }
  for (const { label, image } of EXAMPLES) {
    const [canvas, data] = [element("canvas", { className: "ink" }), decodeImage(image)];
    drawInk(canvas, data, 28);
    add(`a ${label} of MNIST`, canvas, () => showPicture(canvas, { width: 28, height: 28, data }, true));
  }
  for (const [label, canvas] of [["a 5 on ruled paper", ruledPaper()], ["a 3 in chalk", blackboard()]])
    add(label, canvas, () => showPicture(canvas));
  add("an M, which is no digit", element("span", { className: "letter" }, "M"), () => pad.drawStrokes(LETTER));
}

function watchTools() {
  for (const tool of ["draw", "erase"])
    find(tool).addEventListener("change", () => (pad.erases = find("erase").checked));
  find("width").addEventListener("input", () => (pad.width = Number(find("width").value)));
  find("undo").addEventListener("click", () => pad.undo());
  find("clear").addEventListener("click", () => pad.clear());
  document.addEventListener("keydown", (event) => {
    if (event.key !== "z" || !(event.ctrlKey || event.metaKey) || event.shiftKey || !pad.canUndo) return;
    event.preventDefault();
    pad.undo();
  });
}

watchTools();
watchPictures(showPicture, report);
listExamples();
listNetworks();
matchMedia("(prefers-color-scheme: light)").addEventListener("change", update);
const names = Object.keys(CHECKPOINTS);
const start = names.includes("small") ? "small" : names.at(-1); // small reads photographs best
document.querySelector(`input[value="${CSS.escape(start)}"]`).checked = true;
update();
await choose(start);
