// The stages of the network in order: what each shows, and what it says about the digit at hand.
//
// A stage is {title, sentences(values, result) -> [string], example(values) -> [name, index] of a number to look at,
// content}. Content is a tree. {row: [...]}, {stack: [...]} and {grid: [...], columns} hold nodes, a string is a sign
// between two, {bars, caption} are bars, and the leaves are heat maps (heatmap.js). Maps with the same scale in a stage
// have the same colors for the same numbers.

import { percent, signed } from "./dom.js";
import { argmax } from "./vit.js";

const tokenLabel = (row) => (row === 0 ? "CLS" : String(row));

/** Of two vectors, the index at which they differ most. */
const mostChanged = (before, after) => argmax(after.map((x, i) => Math.abs(x - before[i])));

export function makeStages(vit, { mean, std }) {
  const { size, patch, heads, layers } = vit;
  const side = size / patch;
  const count = side * side;
  const width = vit.tensors["vit.cls_token"].shape[2];
  const depth = width / heads;
  const hidden = vit.tensors["vit.blocks.0.mlp.fc1.bias"].shape[0];
  const classes = vit.labels.length;
  const range = (length, make) => Array.from({ length }, (_, i) => make(i));

  // ---- maps

  /** Tokens by numbers of a traced array, from column `first`. */
  const tokens = (caption, name, { scale, columns = width, first = 0, labels = false, more = {} }) => ({
    caption, rows: count + 1, columns, scale, cls: "row", labels: labels && tokenLabel,
    at: (row, column) => [name, [row, first + column]], ...more,
  });
  /** A row of numbers of a parameter. */
  const vector = (caption, name, { columns = width, first = 0, index = (i) => [i], ...more } = {}) => ({
    caption, rows: 1, columns, scale: "weights", at: (_, column) => [name, index(first + column)], ...more,
  });
  /** A weight matrix with a row per input and a column per output, so that its columns stand above their outputs. */
  const matrix = (caption, name, inputs, { columns, first = 0 }) => ({
    caption, rows: inputs, columns, scale: "weights", at: (row, column) => [name, [first + column, row]],
  });
  const layer = (name, inputs, columns, output, first = 0) => ({
    stack: [
      matrix("weights", `${name}.weight`, inputs, { columns, first }),
      ...(vit.tensors[`${name}.bias`] ? [vector("bias", `${name}.bias`, { columns, first })] : []),
      output,
    ],
  });
  const norm = (name, output) => ({
    stack: [vector("weight", `${name}.weight`), vector("bias", `${name}.bias`), output],
  });
  const stream = (index) => (index === 0 ? "vit.pos_drop" : `vit.blocks.${index - 1}`);

  // ---- stages

  const pixels = {
    title: "Pixels and patches",
    sentences: ({ pixel_values: rows }) => {
      const ink = new Array(count).fill(0);
      rows.forEach((row, y) =>
        row.forEach((x, column) => (ink[Math.floor(y / patch) * side + Math.floor(column / patch)] += x)),
      );
      const inked = rows.flat().filter((x) => x > -mean / std + 1e-6).length;
      return [
        `The network gets ${size} × ${size} pixels; ${inked} of them have ink.`,
        `Each pixel's ink, from 0 to 1, minus ${mean}, divided by ${std}, is a number: paper is ` +
          `${signed(-mean / std)}, full ink ${signed((1 - mean) / std)}.`,
        `The image is cut into ${count} patches of ${patch} × ${patch} pixels, and patch ${argmax(ink) + 1} has ` +
          "the most ink.",
      ];
    },
    example: ({ pixel_values: rows }) => {
      const at = argmax(rows.flat());
      return ["pixel_values", [Math.floor(at / size), at % size]];
    },
    content: {
      row: [
        {
          caption: "the digit", rows: size, columns: size, scale: "pixels", cell: 0.65,
          at: (y, x) => ["pixel_values", [y, x]],
        },
        "→",
        {
          grid: range(count, (p) => ({
            caption: `${p + 1}`, name: `patch ${p + 1}`, rows: patch, columns: patch, scale: "pixels", cell: 0.65,
            at: (y, x) => ["pixel_values", [Math.floor(p / side) * patch + y, (p % side) * patch + x]],
          })),
          columns: side,
        },
      ],
    },
  };

  const embedding = {
    title: "Patch embedding",
    sentences: ({ "vit.patch_embed": rows }) => {
      const top = argmax(rows.flat());
      return [
        `A filter has ${patch * patch} weights. Each is multiplied with a pixel of the patch; the products and a ` +
          "bias add up to one number.",
        `The same ${width} filters turn every patch into ${width} numbers: its token.`,
        `The largest here is number ${(top % width) + 1} of patch ${Math.floor(top / width) + 1}: ` +
          `${signed(rows.flat()[top])}.`,
      ];
    },
    example: ({ "vit.patch_embed": rows }) => {
      const at = argmax(rows.flat());
      return ["vit.patch_embed", [Math.floor(at / width), at % width]];
    },
    content: {
      row: [
        {
          stack: [
            "filters and their biases",
            {
              grid: range(width, (f) => ({
                stack: [
                  {
                    caption: `${f + 1}`, name: `filter ${f + 1}`, rows: patch, columns: patch, cell: 0.65,
                    scale: "filters",
                    at: (y, x) => ["vit.patch_embed.proj.weight", [f, 0, y, x]],
                  },
                  vector("", "vit.patch_embed.proj.bias", {
                    columns: 1, first: f, name: `bias of filter ${f + 1}`, scale: "biases",
                  }),
                ],
              })),
              columns: 4,
            },
          ],
        },
        "→",
        {
          caption: `${count} patches`, rows: count, columns: width, scale: "tokens", labels: (row) => `${row + 1}`,
          at: (row, column) => ["vit.patch_embed", [row, column]],
        },
      ],
    },
  };

  const positions = {
    title: "CLS token and positions",
    sentences: ({ "vit.pos_drop": rows }) => {
      const embeddings = vit.data("vit.pos_embed");
      const changes = range(count, (p) => Math.hypot(...embeddings.slice((p + 1) * width, (p + 2) * width)));
      return [
        `The first token is not a patch: CLS has ${width} trained numbers, the same for every image. The answer is ` +
          "computed from this token alone.",
        "Each token gets the numbers of its position added, because attention does not see where a patch is. The " +
          `position of patch ${argmax(changes) + 1} changes its token most.`,
        `CLS with its position is ${rows[0].map((x) => signed(x, 1)).join(", ")}.`,
      ];
    },
    example: () => ["vit.pos_drop", [0, 0]],
    content: {
      row: [
        {
          stack: [
            vector("CLS token", "vit.cls_token", {
              index: (i) => [0, 0, i], cls: "row", scale: "tokens", labels: () => "CLS",
            }),
            {
              caption: "patches", rows: count, columns: width, scale: "tokens", labels: (row) => `${row + 1}`,
              at: (row, column) => ["vit.patch_embed", [row, column]],
            },
          ],
        },
        "+",
        {
          caption: "positions", rows: count + 1, columns: width, scale: "tokens", cls: "row",
          at: (row, column) => ["vit.pos_embed", [0, row, column]],
        },
        "=",
        tokens(`${count + 1} tokens`, "vit.pos_drop", { scale: "tokens" }),
      ],
    },
  };

  const blockStages = (index) => {
    const block = `vit.blocks.${index}`;
    const attention = `${block}.attn`;
    const columnsOfQkv = (caption, first, labels = false) =>
      tokens(caption, `${attention}.qkv`, { scale: "queries, keys, values", columns: depth, first, labels });
    const input = stream(index);
    const isLast = index === layers - 1;
    return [
      {
        title: `Block ${index + 1}: LayerNorm`,
        sentences: (values) => {
          const row = values[input][0];
          const center = row.reduce((sum, x) => sum + x, 0) / width;
          const deviation = Math.sqrt(row.reduce((sum, x) => sum + (x - center) ** 2, 0) / width);
          return [
            `LayerNorm brings the ${width} numbers of each token to mean 0 and standard deviation 1.`,
            `Before, those of CLS have mean ${signed(center)} and deviation ${signed(deviation)}.`,
            `Each number is then multiplied by a weight, and a bias is added.`,
          ];
        },
        example: () => [`${block}.norm1`, [0, 0]],
        content: {
          row: [
            tokens("tokens", input, { scale: "tokens", labels: true }),
            "→",
            norm(`${block}.norm1`, tokens("normalized", `${block}.norm1`, { scale: "normalized" })),
          ],
        },
      },
      {
        title: `Block ${index + 1}: queries, keys, values`,
        sentences: (values) => {
          const qkv = values[`${attention}.qkv`][0];
          const list = (first) => qkv.slice(first, first + depth).map((x) => signed(x, 1)).join(", ");
          return [
            `In each of ${heads} heads, every token gets a query, a key and a value of ${depth} numbers each, from ` +
              `its ${width} numbers and the weights above each.`,
            `The next stage compares queries with keys, and adds up values.`,
            `In head 1, the query of CLS is ${list(0)}, its key ${list(width)}.`,
          ];
        },
        example: () => [`${attention}.qkv`, [0, 0]],
        content: {
          row: [
            tokens("normalized", `${block}.norm1`, { scale: "normalized", labels: true }),
            ...range(heads, (head) => ({
              stack: [
                `head ${head + 1}`,
                {
                  row: ["queries", "keys", "values"].map((kind, k) => {
                    const first = k * width + head * depth;
                    return layer(`${attention}.qkv`, width, depth, columnsOfQkv(kind, first), first);
                  }),
                },
              ],
            })),
          ],
        },
      },
      {
        title: `Block ${index + 1}: attention`,
        sentences: (values) => {
          const shares = range(heads, (head) => {
            const row = values[`${attention}.probabilities`][head][0];
            const order = row.map((_, i) => i).sort((a, b) => row[b] - row[a]);
            const [one, two] = order.map((to) => `${percent(row[to])} to ${to === 0 ? "itself" : `patch ${to}`}`);
            return `In head ${head + 1}, CLS gives ${one} and ${two}.`;
          });
          return [
            `The score of two tokens is the query of one times the key of the other, divided by √${depth}; softmax ` +
              "turns each row of scores into shares that add up to 1.",
            shares.join(" "),
            `The result of a token is the sum of all values, each multiplied by its share.`,
          ];
        },
        example: ({ [`${attention}.probabilities`]: [head] }) => [
          `${attention}.probabilities`,
          [0, 0, argmax(head[0])],
        ],
        content: {
          row: range(heads, (head) => ({
            stack: [
              `head ${head + 1}`,
              {
                row: [
                  columnsOfQkv("queries", head * depth, true),
                  {
                    stack: [
                      {
                        caption: "keys", rows: depth, columns: count + 1, scale: "queries, keys, values", cls: "column",
                        at: (row, column) => [`${attention}.qkv`, [column, width + head * depth + row]],
                      },
                      {
                        caption: "scores, before softmax", rows: count + 1, columns: count + 1, scale: "scores",
                        cls: "row", at: (row, column) => [`${attention}.scores`, [head, row, column]],
                      },
                    ],
                  },
                ],
              },
              {
                row: [
                  {
                    caption: "attention, from row to column", rows: count + 1, columns: count + 1, scale: "attention",
                    cls: "row", labels: tokenLabel,
                    at: (row, column) => [`${attention}.probabilities`, [head, row, column]],
                  },
                  columnsOfQkv("values", 2 * width + head * depth),
                  tokens("result", `${attention}.attended`, {
                    scale: "queries, keys, values", columns: depth, first: head * depth,
                  }),
                ],
              },
            ],
          })),
        },
      },
      {
        title: `Block ${index + 1}: output projection`,
        sentences: (values) => {
          const [before, after] = [values[input][0], values[`${block}.hidden_states`][0]];
          const i = mostChanged(before, after);
          return [
            `The heads together give ${width} numbers per token. ${width} × ${width} weights and ${width} biases ` +
              `map them to ${width} new ones.`,
            `These are added to the token as it was before the block: a residual connection.`,
            `In CLS, number ${i + 1} changes most: from ${signed(before[i])} to ${signed(after[i])}.`,
          ];
        },
        example: ({ [input]: [before], [`${block}.hidden_states`]: [after] }) => [
          `${block}.hidden_states`,
          [0, mostChanged(before, after)],
        ],
        content: {
          row: [
            tokens("results of heads", `${attention}.attended`, { scale: "results", labels: true }),
            "→",
            layer(`${attention}.proj`, width, width, tokens("what is added", `${attention}.proj`, { scale: "tokens" })),
            "+",
            tokens("tokens before", input, { scale: "tokens" }),
            "=",
            tokens("tokens after", `${block}.hidden_states`, { scale: "tokens" }),
          ],
        },
      },
      {
        title: `Block ${index + 1}: MLP`,
        sentences: (values) => {
          const [before, after] = [values[`${block}.hidden_states`][0], values[block][0]];
          const i = mostChanged(before, after);
          const open = values[`${block}.mlp.fc1`][0].filter((x) => x > 0).length;
          return [
            `The MLP works on each token by itself. After a LayerNorm, it maps ${width} numbers to ${hidden}, ` +
              `applies GELU, and maps them to ${width}, which are added to the token.`,
            `GELU keeps large positive numbers and brings negative ones close to 0: of the ${hidden} numbers of ` +
              `CLS, ${open} are positive.`,
            `In CLS, number ${i + 1} changes most: from ${signed(before[i])} to ` +
              `${signed(after[i])}.${isLast ? " The other tokens are not used any more." : ""}`,
          ];
        },
        example: (values) => [block, [0, mostChanged(values[`${block}.hidden_states`][0], values[block][0])]],
        content: {
          stack: [
            {
              row: [
                tokens("tokens", `${block}.hidden_states`, { scale: "tokens", labels: true }),
                "→",
                norm(`${block}.norm2`, tokens("normalized", `${block}.norm2`, { scale: "normalized" })),
                "→",
                layer(
                  `${block}.mlp.fc1`,
                  width,
                  hidden,
                  tokens("hidden layer", `${block}.mlp.fc1`, { scale: "hidden layer", columns: hidden }),
                ),
              ],
            },
            {
              row: [
                tokens("after GELU", `${block}.mlp.act`, { scale: "hidden layer", columns: hidden, labels: true }),
                "→",
                layer(
                  `${block}.mlp.fc2`,
                  hidden,
                  width,
                  tokens("what is added", `${block}.mlp.fc2`, { scale: "tokens" }),
                ),
                "+",
                tokens("tokens before", `${block}.hidden_states`, { scale: "tokens" }),
                "=",
                tokens("tokens after", block, { scale: "tokens" }),
              ],
            },
          ],
        },
      },
    ];
  };

  const path = [
    ["CLS token", "vit.cls_token", [0, 0]],
    ["+ position", "vit.pos_drop", [0]],
    ...range(layers, (i) => [
      [`+ attention ${i + 1}`, `vit.blocks.${i}.hidden_states`, [0]],
      [`+ MLP ${i + 1}`, `vit.blocks.${i}`, [0]],
    ]).flat(),
  ];
  const final = {
    title: "CLS from stage to stage, and the final LayerNorm",
    sentences: ({ "vit.norm": [row] }) => {
      const i = argmax(row.map(Math.abs));
      return [
        `These are the ${width} numbers of CLS after each stage; every row is the row above plus what one stage ` +
          "has added.",
        `The final LayerNorm gives the numbers that the head reads.`,
        `The answer depends only on these ${width}. The farthest from 0 is number ${i + 1}: ${signed(row[i])}.`,
      ];
    },
    example: ({ "vit.norm": [row] }) => ["vit.norm", [0, argmax(row.map(Math.abs))]],
    content: {
      isShort: true,
      row: [
        {
          caption: "CLS after each stage", rows: path.length, columns: width, scale: "tokens", isWide: true, cell: 1.6,
          labels: (row) => path[row][0], at: (row, column) => [path[row][1], [...path[row][2], column]],
        },
        "→",
        {
          stack: [
            vector("weight", "vit.norm.weight", { cell: 1.6 }),
            vector("bias", "vit.norm.bias", { cell: 1.6 }),
            vector("CLS, normalized", "vit.norm", {
              index: (i) => [0, i], cls: "row", cell: 1.6, scale: "normalized",
            }),
          ],
        },
      ],
    },
  };

  const logits = {
    title: "Ten logits",
    sentences: ({ "vit.norm": [row], head: [scores] }) => {
      const best = argmax(scores);
      const weights = vit.data("head.weight").slice(best * width, (best + 1) * width);
      const terms = row.map((x, i) => x * weights[i]);
      const [up, down] = [argmax(terms), argmax(terms.map((x) => -x))];
      return [
        `The logit of a class is the sum of ${width} products, the numbers of CLS times the weights of that class, ` +
          "and a bias.",
        `${vit.labels[best]} has the largest: ${signed(scores[best])}. Number ${up + 1} adds most to it: ` +
          `${signed(row[up])} × ${signed(weights[up])} = ${signed(terms[up])}.`,
        terms[down] < 0
          ? `Number ${down + 1} takes most from it: ${signed(terms[down])}.`
          : `None of its products is negative.`,
      ];
    },
    example: ({ head: [scores] }) => ["head", [0, argmax(scores)]],
    content: {
      row: [
        vector("CLS, normalized", "vit.norm", { index: (i) => [0, i], cls: "row", scale: "normalized" }),
        layer("head", width, classes, {
          caption: "logits 0 to 9", rows: 1, columns: classes, scale: "logits",
          at: (_, column) => ["head", [0, column]],
        }),
        { bars: "logits", caption: "logits as sums: one part per product, and the bias; the line marks the sum" },
      ],
    },
  };

  const probabilities = {
    title: "Ten probabilities",
    sentences: ({ head: [scores], probabilities: [shares] }, { digitScore }) => {
      const [one, two] = shares.map((_, i) => i).sort((a, b) => shares[b] - shares[a]);
      const lead = scores[one] - scores[two];
      return [
        `Softmax takes e to the power of each logit, and divides by the sum of all ten.`,
        `${vit.labels[one]} gets ${percent(shares[one])} and ${vit.labels[two]} gets ${percent(shares[two])}: its ` +
          `logit is larger by ${signed(lead)}, and e to that power is ` +
          `${Math.exp(lead) < 1e4 ? Math.exp(lead).toFixed(1) : Math.exp(lead).toExponential(1)}.`,
        `The digit score says how unequal the ten are: ${digitScore.toFixed(2)}.`,
        ...(Number.isFinite(vit.threshold) ? [`Below ${vit.threshold.toFixed(2)}, the page says “not a digit?”.`] : []),
      ];
    },
    example: ({ probabilities: [shares] }) => ["probabilities", [0, argmax(shares)]],
    content: {
      row: [
        {
          stack: [
            {
              caption: "logits 0 to 9", rows: 1, columns: classes, scale: "logits", cell: 1.6,
              at: (_, column) => ["head", [0, column]],
            },
            {
              caption: "probabilities", rows: 1, columns: classes, scale: "attention", cell: 1.6,
              at: (_, column) => ["probabilities", [0, column]],
            },
          ],
        },
        { bars: "probabilities", caption: "probabilities, from 0 to 100 %" },
      ],
    },
  };

  return [pixels, embedding, positions, ...range(layers, blockStages).flat(), final, logits, probabilities];
}
