// The network in plain JavaScript. It reads a checkpoint's config.json and model.safetensors.
// It uses the names of modeling_vit_mnist.py; tests/test_web.py compares the two.

/** Tensors of a safetensors file: name to {shape, data}, float32 only. https://github.com/huggingface/safetensors */
export function parseSafetensors(buffer) {
  const view = new DataView(buffer);
  const length = Number(view.getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
  const tensors = {};
  for (const [name, entry] of Object.entries(header)) {
    if (name === "__metadata__") continue;
    if (entry.dtype !== "F32") throw new Error(`${name} is ${entry.dtype}: only float32 weights can be read here.`);
    const [start, end] = entry.data_offsets;
    tensors[name] = { shape: entry.shape, data: new Float32Array(buffer.slice(8 + length + start, 8 + length + end)) };
  }
  return tensors;
}

/** The error function, by a series whose terms are all positive: exact to about 1e-15. DLMF 7.6.2. */
function erf(x) {
  if (Math.abs(x) > 6) return Math.sign(x);
  let [sum, term] = [x, x];
  for (let n = 1; Math.abs(term) > 1e-17 * Math.abs(sum); n++) sum += term *= (2 * x * x) / (2 * n + 1);
  return (2 / Math.sqrt(Math.PI)) * Math.exp(-x * x) * sum;
}

/** How much of its input GELU passes on: the normal distribution's share below x. */
export const geluGate = (x) => 0.5 * (1 + erf(x / Math.SQRT2));

export const argmax = (numbers) => numbers.indexOf(Math.max(...numbers));

export function softmax(scores) {
  const top = Math.max(...scores);
  const powers = scores.map((score) => Math.exp(score - top));
  const total = powers.reduce((sum, power) => sum + power, 0);
  return powers.map((power) => power / total);
}

/** How much an image looks like one of the classes: modeling_vit_mnist.py's `digit_score`. */
export function digitScore(logits) {
  const top = Math.max(...logits);
  const logTotal = top + Math.log(logits.reduce((sum, logit) => sum + Math.exp(logit - top), 0));
  return logTotal - logits.reduce((sum, logit) => sum + logit, 0) / logits.length - Math.log(logits.length);
}

export class Vit {
  constructor(config, tensors) {
    if (config.hidden_act && config.hidden_act !== "gelu") throw new Error(`No activation ${config.hidden_act} here.`);
    this.size = config.image_size ?? 28;
    this.patch = config.patch_size ?? 7;
    this.heads = config.num_attention_heads ?? 2;
    this.layers = config.num_hidden_layers ?? 2;
    this.eps = config.layer_norm_eps ?? 1e-6;
    this.labels = Object.values(config.id2label);
    this.threshold = config.digit_score_threshold ?? -Infinity; // a lower score is probably of no digit
    this.tensors = tensors;
  }

  data(name) {
    return this.tensors[name].data;
  }

  countParameters() {
    return Object.values(this.tensors).reduce((sum, { data }) => sum + data.length, 0);
  }

  /** Rows times the transposed weight, plus the bias. */
  linear(rows, name) {
    const weight = this.tensors[`${name}.weight`];
    const bias = this.tensors[`${name}.bias`]?.data;
    const outputs = weight.shape[0];
    return rows.map((row) => {
      const result = new Array(outputs);
      for (let o = 0; o < outputs; o++) {
        let sum = bias ? bias[o] : 0;
        for (let i = 0, at = o * row.length; i < row.length; i++, at++) sum += weight.data[at] * row[i];
        result[o] = sum;
      }
      return result;
    });
  }

  norm(rows, name) {
    const [weight, bias] = [this.data(`${name}.weight`), this.data(`${name}.bias`)];
    return rows.map((row) => {
      const mean = row.reduce((sum, x) => sum + x, 0) / row.length;
      const variance = row.reduce((sum, x) => sum + (x - mean) ** 2, 0) / row.length;
      const scale = 1 / Math.sqrt(variance + this.eps);
      return row.map((x, i) => (x - mean) * scale * weight[i] + bias[i]);
    });
  }

  /** The convolution with stride = kernel size is a linear map of each flattened patch. */
  patches(pixels) {
    const side = this.size / this.patch;
    const rows = [];
    for (let top = 0; top < side; top++)
      for (let left = 0; left < side; left++) {
        const row = [];
        for (let y = 0; y < this.patch; y++)
          for (let x = 0; x < this.patch; x++)
            row.push(pixels[(top * this.patch + y) * this.size + left * this.patch + x]);
        rows.push(row);
      }
    return rows;
  }

  /** Multi-head self-attention: the new tokens, and per head the weights [from][to]. */
  attend(tokens, name, record) {
    const width = tokens[0].length;
    const depth = width / this.heads;
    const qkv = record(`${name}.qkv`, this.linear(tokens, `${name}.qkv`)); // per token: queries, keys, values
    const attended = tokens.map(() => new Array(width));
    const scores = [];
    for (let at = 0; at < width; at += depth)
      scores.push(
        qkv.map((query) =>
          qkv.map((key) => {
            let score = 0;
            for (let i = at; i < at + depth; i++) score += query[i] * key[width + i];
            return score / Math.sqrt(depth);
          }),
        ),
      );
    record(`${name}.scores`, scores); // [head][from][to]
    const maps = record(`${name}.probabilities`, scores.map((head) => head.map(softmax)));
    maps.forEach((map, head) =>
      map.forEach((weights, token) => {
        for (let i = head * depth; i < (head + 1) * depth; i++)
          attended[token][i] = weights.reduce((sum, w, other) => sum + w * qkv[other][2 * width + i], 0);
      }),
    );
    record(`${name}.attended`, attended);
    return [record(`${name}.proj`, this.linear(attended, `${name}.proj`)), maps];
  }

  /**
   * From size * size normalized pixels to {logits, probabilities, digitScore, attentions[layer][head][from][to]}.
   * `record` gets each intermediate array under the name of the module of modeling_vit_mnist.py that returns it; what
   * no module returns, under its module and the name of its variable. Rows are tokens.
   */
  forward(pixels, record = (name, value) => value) {
    const add = (rows, others) => rows.map((row, r) => row.map((x, i) => x + others[r][i]));
    const linear = (rows, name) => record(name, this.linear(rows, name));
    const norm = (rows, name) => record(name, this.norm(rows, name));
    const positions = this.data("vit.pos_embed");
    const patches = record("vit.patch_embed", this.linear(this.patches(pixels), "vit.patch_embed.proj"));
    let tokens = [Array.from(this.data("vit.cls_token")), ...patches];
    tokens = record("vit.pos_drop", tokens.map((row, r) => row.map((x, i) => x + positions[r * row.length + i])));
    const attentions = [];
    for (let layer = 0; layer < this.layers; layer++) {
      const block = `vit.blocks.${layer}`;
      const [attended, maps] = this.attend(norm(tokens, `${block}.norm1`), `${block}.attn`, record);
      attentions.push(maps);
      tokens = record(`${block}.hidden_states`, add(tokens, attended));
      const hidden = linear(norm(tokens, `${block}.norm2`), `${block}.mlp.fc1`);
      const active = record(`${block}.mlp.act`, hidden.map((row) => row.map((x) => x * geluGate(x))));
      tokens = record(block, add(tokens, linear(active, `${block}.mlp.fc2`)));
    }
    const [logits] = linear(norm(tokens.slice(0, 1), "vit.norm"), "head"); // the head reads only the CLS token
    const probabilities = softmax(logits);
    record("probabilities", [probabilities]);
    return { logits, probabilities, digitScore: digitScore(logits), attentions };
  }

  /** The result of `forward`, and all that it recorded: name to array of numbers. */
  trace(pixels) {
    const { size } = this;
    const rows = Array.from({ length: size }, (_, y) => Array.from(pixels).slice(y * size, (y + 1) * size));
    const values = { pixel_values: rows };
    const result = this.forward(pixels, (name, value) => (values[name] = value));
    return { result, values };
  }
}
