// The panel of the chosen number: what it was made of, and for a weight, the slider that changes it.

import { describe, explain, isParameter, offset, valueOf } from "./terms.js";
import { element } from "./dom.js";
import { inkColor, paint, signedColor } from "./heatmap.js";

/** Three or so digits, and a minus sign as wide as a plus. */
export function format(x) {
  const size = Math.abs(x);
  let text = x.toFixed(size >= 100 ? 1 : size >= 10 ? 2 : 3);
  if (size < 0.0005 && size > 0) text = x.toExponential(1);
  return text.replaceAll("-", "−");
}

let shown = null; // what the panel shows: a weight's slider stays while it moves

/** Show `state.chosen`. Returns the numbers that it was made of: [{name, index}]. */
export function showNumber(reading, details, state, { edit, follow }) {
  const { chosen, network, values, edits } = state;
  if (!chosen) {
    reading.textContent = "Point at a number";
    details.replaceChildren();
    shown = null;
    return [];
  }
  const { vit } = network;
  const { name, index } = chosen;
  const value = valueOf(vit, values, name, index);
  const headline = `${describe(vit, name, index)}: ${format(value)}`;
  if (reading.textContent !== headline) reading.textContent = headline;
  const id = `${name} ${index}`;
  const reference = element("code", {}, `${name}[${index.join(", ")}]`);

  if (isParameter(vit, name)) {
    if (shown !== id) details.replaceChildren(reference, editor(vit, name, index, edit));
    shown = id;
    updateEditor(details, value, edits.get(`${name} ${offset(vit.tensors[name].shape, index)}`));
    return [];
  }
  shown = id;
  const { how, terms, inputs = [] } = explain(vit, values, name, index);
  if (name === "pixel_values") {
    const byte = state.image[index[0] * vit.size + index[1]];
    const how = `ink ${byte} of 255: (${byte} / 255 − ${network.mean}) / ${network.std} = ${format(value)}`;
    details.replaceChildren(reference, element("p", { className: "help" }, how));
    return [];
  }
  const pictures = [];
  if (name === "vit.patch_embed") pictures.push(patchPictures(network, terms));
  if (name.endsWith("attn.probabilities")) pictures.push(attentionPicture(state, values[name], index));
  const explanation = element("p", { className: "help" }, how);
  details.replaceChildren(reference, explanation, ...pictures, table(vit, terms, value, follow));
  return [...terms.flatMap(({ factors }) => factors.filter((factor) => factor.name)), ...inputs];
}

/** The terms, the largest first, and their sum. */
function table(vit, terms, value, follow) {
  const top = Math.max(...terms.map((term) => Math.abs(term.value)), 1e-12);
  const rows = [...terms]
    .sort((a, b) => Math.abs(b.value) - Math.abs(a.value))
    .map((term) => {
      const factors = term.factors.flatMap((factor, i) => [...(i ? [" × "] : []), factorButton(vit, factor, follow)]);
      const bar = element("i", { className: term.value < 0 ? "negative" : "" });
      const length = (50 * Math.abs(term.value)) / top;
      bar.style.cssText = `width: ${length}%; left: ${term.value < 0 ? 50 - length : 50}%`;
      return element(
        "tr",
        {},
        element("td", {}, term.label),
        element("td", {}, ...factors),
        element("td", {}, format(term.value)),
        element("td", { className: "part", "aria-hidden": "true" }, element("div", {}, bar)),
      );
    });
  const sum = element("tr", {}, ...["sum", "", format(value), ""].map((text) => element("td", {}, text)));
  return element("table", { className: "terms" }, element("tbody", {}, ...rows), element("tfoot", {}, sum));
}

function factorButton(vit, { name, index, value, label }, follow) {
  if (!name) return element("span", { title: label }, format(value));
  const isWeight = isParameter(vit, name);
  const title = label ?? `${name}[${index}]: click to ${isWeight ? "change it" : "see what it was made of"}`;
  const button = element("button", { type: "button", title, className: isWeight ? "weight" : "" }, format(value));
  button.addEventListener("click", () => follow(name, index));
  return button;
}

/** A patch, the filter, and their products, pixel by pixel. */
function patchPictures({ vit, mean, std }, terms) {
  const { patch } = vit;
  const products = terms.slice(0, patch * patch);
  const [pixels, weights] = [0, 1].map((i) => products.map(({ factors }) => factors[i].value));
  const picture = (label, numbers, color) => {
    const canvas = element("canvas", { role: "img", "aria-label": label });
    const top = Math.max(...numbers.map(Math.abs), 1e-6);
    paint(canvas, patch, patch, (y, x) => (color ?? ((n) => signedColor(n / top)))(numbers[y * patch + x]));
    return element("figure", { className: "heat" }, element("figcaption", {}, label), canvas);
  };
  return element(
    "div",
    { className: "pictures" },
    picture("patch ×", pixels, (n) => inkColor(n * std + mean)),
    picture("filter =", weights),
    picture("products", products.map((term) => term.value)),
  );
}

/** Where a token's attention goes, on the digit: the color of a patch is its share, on the scale of the maps. */
function attentionPicture({ network: { vit }, image }, heads, [head, from]) {
  const { size, patch } = vit;
  const row = heads[head][from];
  const label = `from ${from === 0 ? "CLS" : `patch ${from}`} to the patches; ${Math.round(100 * row[0])} % to CLS`;
  const canvas = element("canvas", { role: "img", "aria-label": label });
  paint(canvas, size, size, (y, x) => {
    const share = signedColor(row[1 + Math.floor(y / patch) * (size / patch) + Math.floor(x / patch)]);
    const [ink, opacity] = [inkColor(1), (0.6 * image[y * size + x]) / 255];
    return share.map((level, i) => level + opacity * (ink[i] - level));
  });
  const figure = element("figure", { className: "heat" }, element("figcaption", {}, label), canvas);
  return element("div", { className: "pictures large" }, figure);
}

function editor(vit, name, index, edit) {
  const largest = vit.data(name).reduce((top, x) => Math.max(top, Math.abs(x)), 1);
  const limit = 2 * Math.ceil(largest);
  const limits = { min: -limit, max: limit, step: 0.01 };
  const slider = element("input", { type: "range", ...limits, "aria-label": "Value of the weight" });
  const input = element("input", { type: "number", step: 0.1, "aria-label": "Value of the weight, as a number" });
  const showValue = () => (input.value = Number(valueOf(vit, {}, name, index).toFixed(4)));
  const back = element("button", { type: "button" }, "Put back");
  slider.addEventListener("input", () => edit(name, index, slider.valueAsNumber));
  input.addEventListener("input", () => Number.isFinite(input.valueAsNumber) && edit(name, index, input.valueAsNumber));
  input.addEventListener("change", showValue); // it may have been too large
  back.addEventListener("click", () => edit(name, index, null));
  return element(
    "div",
    { className: "editor" },
    element("p", { className: "help" }, "A trained weight. Change it, and all stages and the answer follow."),
    slider,
    element("label", {}, input, back),
    element("p", { className: "help trained" }),
  );
}

function updateEditor(details, value, edited) {
  const [slider, input] = details.querySelectorAll("input");
  slider.value = value;
  if (document.activeElement !== input) input.value = Number(value.toFixed(4));
  details.querySelector("button").disabled = !edited;
  details.querySelector(".trained").textContent = edited ? `Trained: ${format(edited.trained)}.` : "As trained.";
}
