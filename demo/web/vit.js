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

// Abramowitz and Stegun 7.1.26, with an error of at most 1.5e-7.
function erf(x) {
  const t = 1 / (1 + 0.3275911 * Math.abs(x));
  const tail = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
  return Math.sign(x) * (1 - tail * Math.exp(-x * x));
}

const gelu = (x) => 0.5 * x * (1 + erf(x / Math.SQRT2));

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

  patches(pixels) {
    const side = this.size / this.patch;
    const rows = [];
    for (let top = 0; top < side; top++)
      for (let left = 0; left < side; left++) {
        const row = [];
        for (let y = 0; y < this.patch; y++)
          for (let x = 0; x < this.patch; x++) row.push(pixels[(top * this.patch + y) * this.size + left * this.patch + x]);
        rows.push(row);
      }
    return rows;
  }

  /** Multi-head self-attention: the new tokens, and per head the weights [from][to]. */
  attend(tokens, name) {
    const width = tokens[0].length;
    const depth = width / this.heads;
    const qkv = this.linear(tokens, `${name}.qkv`); // per token: queries, keys, values of all heads
    const attended = tokens.map(() => new Array(width));
    const maps = [];
    for (let head = 0; head < this.heads; head++) {
      const at = head * depth;
      const map = qkv.map((query) =>
        softmax(
          qkv.map((key) => {
            let score = 0;
            for (let i = 0; i < depth; i++) score += query[at + i] * key[width + at + i];
            return score / Math.sqrt(depth);
          }),
        ),
      );
      map.forEach((weights, token) => {
        for (let i = 0; i < depth; i++)
          attended[token][at + i] = weights.reduce((sum, w, other) => sum + w * qkv[other][2 * width + at + i], 0);
      });
      maps.push(map);
    }
    return [this.linear(attended, `${name}.proj`), maps];
  }

  /** From size * size normalized pixels to {logits, probabilities, digitScore, attentions[layer][head][from][to]}. */
  forward(pixels) {
    const add = (rows, others) => rows.map((row, r) => row.map((x, i) => x + others[r][i]));
    const positions = this.data("vit.pos_embed");
    let tokens = [Array.from(this.data("vit.cls_token")), ...this.embed(pixels)];
    tokens = tokens.map((row, r) => row.map((x, i) => x + positions[r * row.length + i]));
    const attentions = [];
    for (let layer = 0; layer < this.layers; layer++) {
      const block = `vit.blocks.${layer}`;
      const [attended, maps] = this.attend(this.norm(tokens, `${block}.norm1`), `${block}.attn`);
      attentions.push(maps);
      tokens = add(tokens, attended);
      const hidden = this.linear(this.norm(tokens, `${block}.norm2`), `${block}.mlp.fc1`);
      tokens = add(tokens, this.linear(hidden.map((row) => row.map(gelu)), `${block}.mlp.fc2`));
    }
    const [logits] = this.linear(this.norm(tokens.slice(0, 1), "vit.norm"), "head");
    return { logits, probabilities: softmax(logits), digitScore: digitScore(logits), attentions };
  }

  /** The convolution with stride = kernel size is a linear map of each flattened patch. */
  embed(pixels) {
    return this.linear(this.patches(pixels), "vit.patch_embed.proj");
  }
}
