// What each number of the network was made of. A number is named as in vit.js's trace, or as the parameter of
// model.safetensors, with its index: ["vit.blocks.0.attn.qkv", [token, output]]. tests/test_web_network.py checks that
// the terms of every number add up to it.

import { signed } from "./dom.js";
import { geluGate } from "./vit.js";

/** Position of an element of a tensor in its data. */
export const offset = (shape, index) => index.reduce((at, i, axis) => at * shape[axis] + i, 0);

export const isParameter = (vit, name) => Object.hasOwn(vit.tensors, name);

/** The value of a number: of a parameter, or of a traced array. */
export function valueOf(vit, values, name, index) {
  if (isParameter(vit, name)) {
    const { shape, data } = vit.tensors[name];
    return data[offset(shape, index)];
  }
  return index.reduce((array, i) => array[i], values[name]);
}

/**
 * {how, terms, inputs} of a traced number. A term is {label, value, factors}, and its value is the product of its
 * factors'. A factor is {value, name, index}, or {value, label} if it is not shown on the page. Inputs are further
 * numbers that it depends on. Pixels and weights have no terms.
 */
export function explain(vit, values, name, index) {
  const width = values["vit.pos_drop"][0].length;
  const depth = width / vit.heads;
  const number = (of, ...at) => ({ name: of, index: at, value: valueOf(vit, values, of, at) });
  const plain = (label, value) => ({ label, value });
  const term = (label, ...factors) => ({ label, factors, value: factors.reduce((all, { value }) => all * value, 1) });
  const range = (count, make) => Array.from({ length: count }, (_, i) => make(i));
  const bias = (of, output) => (isParameter(vit, of) ? [term("bias", number(of, output))] : []);

  const linear = (layer, input, [row, output]) => ({
    how: "inputs × weights + bias",
    terms: [
      ...range(values[input][row].length, (i) =>
        term(`input ${i + 1}`, number(input, row, i), number(`${layer}.weight`, output, i)),
      ),
      ...bias(`${layer}.bias`, output),
    ],
  });

  const norm = (layer, input, [row, i]) => {
    const inputs = values[input][row];
    const mean = inputs.reduce((sum, x) => sum + x, 0) / inputs.length;
    const variance = inputs.reduce((sum, x) => sum + (x - mean) ** 2, 0) / inputs.length;
    const deviation = Math.sqrt(variance + vit.eps);
    const scale = plain("1 / deviation", 1 / deviation);
    const weight = number(`${layer}.weight`, i);
    return {
      how:
        "(input − mean) / deviation × weight + bias; " +
        `the token's numbers have mean ${signed(mean, 3)} and deviation ${signed(deviation, 3)}`,
      inputs: inputs.map((_, at) => number(input, row, at)),
      terms: [
        term("input", number(input, row, i), scale, weight),
        term("mean", plain("−mean", -mean), scale, weight),
        ...bias(`${layer}.bias`, i),
      ],
    };
  };

  const softmax = (input, index) => {
    const scores = valueOf(vit, values, input, index.slice(0, -1));
    const top = Math.max(...scores);
    const total = scores.reduce((sum, score) => sum + Math.exp(score - top), 0);
    const own = number(input, ...index);
    const power = { ...own, label: "e^(score − largest)", value: Math.exp(own.value - top) };
    return {
      how:
        `softmax: e^(score − largest score of the row) = ${signed(power.value, 3)}, ` +
        `divided by the sum over the row, ${signed(total, 3)}`,
      inputs: scores.map((_, at) => number(input, ...index.slice(0, -1), at)),
      terms: [term("share", power, plain("1 / sum", 1 / total))],
    };
  };

  const sum = (how, one, two) => ({ how, terms: [term(...one), term(...two)] });
  const stream = (layer) => (layer === 0 ? "vit.pos_drop" : `vit.blocks.${layer - 1}`);
  const [row, column] = index;

  if (name === "pixel_values" || isParameter(vit, name)) return { how: "", terms: [] };
  if (name === "vit.patch_embed") {
    const { patch, size } = vit;
    const [top, left] = [Math.floor(row / (size / patch)) * patch, (row % (size / patch)) * patch];
    const pixels = range(patch * patch, (i) => {
      const [y, x] = [Math.floor(i / patch), i % patch];
      const weight = number("vit.patch_embed.proj.weight", column, 0, y, x);
      return term(`pixel ${y + 1}, ${x + 1}`, number("pixel_values", top + y, left + x), weight);
    });
    return { how: "pixels × filter + bias", terms: [...pixels, ...bias("vit.patch_embed.proj.bias", column)] };
  }
  if (name === "vit.pos_drop") {
    const token = row === 0 ? number("vit.cls_token", 0, 0, column) : number("vit.patch_embed", row - 1, column);
    return sum("token + position", ["token", token], ["position", number("vit.pos_embed", 0, row, column)]);
  }
  if (name === "vit.norm") return norm(name, stream(vit.layers), index);
  if (name === "head") return linear(name, "vit.norm", index);
  if (name === "probabilities") return softmax("head", index);

  const [, block, part] = name.match(/^(vit\.blocks\.\d+)\.?(.*)$/);
  const layer = Number(block.split(".")[2]);
  switch (part) {
    case "norm1":
      return norm(name, stream(layer), index);
    case "attn.qkv":
      return linear(name, `${block}.norm1`, index);
    case "attn.scores": {
      const [head, from, to] = index;
      const scale = plain(`1 / √${depth}`, 1 / Math.sqrt(depth));
      const terms = range(depth, (i) => {
        const query = number(`${block}.attn.qkv`, from, head * depth + i);
        return term(`query × key ${i + 1}`, query, number(`${block}.attn.qkv`, to, width + head * depth + i), scale);
      });
      return { how: `query · key / √${depth}`, terms };
    }
    case "attn.probabilities":
      return softmax(`${block}.attn.scores`, index);
    case "attn.attended": {
      const head = Math.floor(column / depth);
      const terms = range(values[stream(layer)].length, (to) => {
        const share = number(`${block}.attn.probabilities`, head, row, to);
        return term(to === 0 ? "CLS" : `patch ${to}`, share, number(`${block}.attn.qkv`, to, 2 * width + column));
      });
      return { how: "values of all tokens, weighted by attention", terms };
    }
    case "attn.proj":
      return linear(name, `${block}.attn.attended`, index);
    case "hidden_states":
      return sum(
        "token + what attention adds",
        ["token", number(stream(layer), ...index)],
        ["attention", number(`${block}.attn.proj`, ...index)],
      );
    case "norm2":
      return norm(name, `${block}.hidden_states`, index);
    case "mlp.fc1":
      return linear(name, `${block}.norm2`, index);
    case "mlp.act": {
      const input = number(`${block}.mlp.fc1`, ...index);
      return {
        how: "GELU: input × the share of the normal distribution below it",
        terms: [term("input", input, plain("share below", geluGate(input.value)))],
      };
    }
    case "mlp.fc2":
      return linear(name, `${block}.mlp.act`, index);
    case "":
      return sum(
        "token + what the MLP adds",
        ["token", number(`${block}.hidden_states`, ...index)],
        ["MLP", number(`${block}.mlp.fc2`, ...index)],
      );
    default:
      throw new Error(`No number is named ${name}.`);
  }
}

/** What is kept of each part of the network, in order: {part, count}. */
export function countParameters(vit) {
  const parts = [
    ["patch filters", /patch_embed/],
    ["CLS token", /cls_token/],
    ["positions", /pos_embed/],
    ...Array.from({ length: vit.layers }, (_, i) => [`block ${i + 1}`, new RegExp(`blocks\\.${i}\\.`)]),
    ["final LayerNorm", /^vit\.norm/],
    ["head", /^head/],
  ];
  return parts.map(([part, pattern]) => {
    const names = Object.keys(vit.tensors).filter((name) => pattern.test(name));
    return { part, count: names.reduce((sum, name) => sum + vit.data(name).length, 0) };
  });
}

/** A number's name for people. */
export function describe(vit, name, index) {
  const token = (t) => (t === 0 ? "CLS" : `patch ${t}`);
  const last = index.at(-1) + 1;
  const layer = name.match(/blocks\.(\d+)/) ? `block ${Number(name.match(/blocks\.(\d+)/)[1]) + 1}, ` : "";
  const part = name.replace(/^vit\./, "").replace(/^blocks\.\d+\.?/, "");
  const width = vit.tensors["vit.cls_token"].shape[2];
  const depth = width / vit.heads;
  /** A column of qkv. */
  const output = (column) => {
    const kind = ["query", "key", "value"][Math.floor(column / width)];
    const i = column % width;
    return `head ${Math.floor(i / depth) + 1}, ${kind} number ${(i % depth) + 1}`;
  };
  if (isParameter(vit, name)) return `${layer}${PARAMETERS[part](index, { vit, token, output })}`;
  switch (part) {
    case "pixel_values":
      return `pixel in row ${index[0] + 1}, column ${last}`;
    case "patch_embed":
      return `patch ${index[0] + 1}, number ${last}`;
    case "attn.qkv":
      return `${layer}${token(index[0])}, ${output(index[1])}`;
    case "attn.scores":
    case "attn.probabilities": {
      const kind = part === "attn.scores" ? "score" : "attention";
      return `${layer}head ${index[0] + 1}: ${kind} from ${token(index[1])} to ${token(index[2])}`;
    }
    case "head":
      return `logit of ${vit.labels[index[1]]}`;
    case "probabilities":
      return `probability of ${vit.labels[index[1]]}`;
    default:
      return `${layer}${token(index[0])}, ${VALUES[part]}, number ${last}`;
  }
}

const VALUES = {
  pos_drop: "with its position",
  norm: "after the final LayerNorm",
  norm1: "after LayerNorm 1",
  norm2: "after LayerNorm 2",
  "attn.attended": "attended values",
  "attn.proj": "what attention adds",
  hidden_states: "after attention",
  "mlp.fc1": "hidden layer of the MLP",
  "mlp.act": "hidden layer after GELU",
  "mlp.fc2": "what the MLP adds",
  "": "after the MLP",
};

const one = (name) => ([output]) => `${name} ${output + 1}`;
const two = (name) => ([output, input]) => `${name} from input ${input + 1} to output ${output + 1}`;
const PARAMETERS = {
  "patch_embed.proj.weight": ([filter, , y, x]) => `filter ${filter + 1}, row ${y + 1}, column ${x + 1}`,
  "patch_embed.proj.bias": one("bias of filter"),
  cls_token: ([, , i]) => `CLS token, number ${i + 1}`,
  pos_embed: ([, t, i], { token }) => `position of ${token(t)}, number ${i + 1}`,
  "norm1.weight": one("weight of LayerNorm 1, number"),
  "norm1.bias": one("bias of LayerNorm 1, number"),
  "attn.qkv.weight": ([o, i], { output }) => `weight from input ${i + 1} to ${output(o)}`,
  "attn.qkv.bias": ([o], { output }) => `bias of ${output(o)}`,
  "attn.proj.weight": two("weight of the output projection"),
  "attn.proj.bias": one("bias of the output projection, output"),
  "norm2.weight": one("weight of LayerNorm 2, number"),
  "norm2.bias": one("bias of LayerNorm 2, number"),
  "mlp.fc1.weight": two("weight of the first MLP layer"),
  "mlp.fc1.bias": one("bias of the first MLP layer, output"),
  "mlp.fc2.weight": two("weight of the second MLP layer"),
  "mlp.fc2.bias": one("bias of the second MLP layer, output"),
  "norm.weight": one("weight of the final LayerNorm, number"),
  "norm.bias": one("bias of the final LayerNorm, number"),
  "head.weight": ([o, i], { vit }) => `weight of the head from number ${i + 1} of CLS to class ${vit.labels[o]}`,
  "head.bias": ([o], { vit }) => `bias of the head for class ${vit.labels[o]}`,
};
