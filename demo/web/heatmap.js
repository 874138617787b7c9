// A heat map of numbers: one canvas pixel per number, enlarged by CSS. Hover, tap or arrow keys choose a number.

import { element } from "./dom.js";

const STOPS = {
  light: {
    negative: [[255, 255, 255], [109, 172, 224], [8, 69, 148]],
    positive: [[255, 255, 255], [248, 163, 84], [166, 70, 0]],
  },
  dark: {
    negative: [[22, 24, 28], [38, 98, 163], [138, 200, 255]],
    positive: [[22, 24, 28], [176, 90, 24], [255, 184, 102]],
  },
};

const darkScheme = matchMedia("(prefers-color-scheme: dark)");
export const onSchemeChange = (listener) => darkScheme.addEventListener("change", listener);

/** Blue below 0, orange above, the paper's color at 0; `share` is from -1 to 1. */
export function signedColor(share) {
  const stops = STOPS[darkScheme.matches ? "dark" : "light"][share < 0 ? "negative" : "positive"];
  const at = Math.min(Math.abs(share), 1) * (stops.length - 1);
  const index = Math.min(Math.floor(at), stops.length - 2);
  return stops[index].map((level, i) => level + (at - index) * (stops[index + 1][i] - level));
}

/** Ink on paper: from 0, paper, to 1. Dark ink on a light page, light ink on a dark one. */
export function inkColor(share) {
  const level = 255 * (darkScheme.matches ? share : 1 - share);
  return [level, level, level];
}

export function paint(canvas, rows, columns, color) {
  [canvas.width, canvas.height] = [columns, rows];
  const image = new ImageData(columns, rows);
  for (let row = 0; row < rows; row++)
    for (let column = 0; column < columns; column++)
      image.data.set([...color(row, column), 255], 4 * (row * columns + column));
  canvas.getContext("2d").putImageData(image, 0, 0);
}

const ARROWS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

export class HeatMap {
  /**
   * `spec`: {caption, rows, columns, at(row, column) -> [name, index], scale, cls: "row" | "column", labels, cell}.
   * `listener`: {show(map, row, column), leave(), pick(map, row, column)}.
   */
  constructor(spec, listener) {
    Object.assign(this, { cls: null, labels: false, cell: 1, ...spec });
    this.place = [0, 0];
    const size = `${this.rows} × ${this.columns} numbers`;
    this.canvas = element("canvas", {
      tabindex: 0,
      role: "application",
      "aria-label": `${this.name ?? this.caption}: ${size}. Arrow keys choose one, Enter keeps it.`,
      "aria-describedby": "reading",
    });
    this.frame = element("div", { className: `map ${this.scale}` }, this.canvas);
    this.frame.style.cssText = `--rows: ${this.rows}; --columns: ${this.columns}; --size: ${this.cell}`;
    if (this.cls) this.frame.append(element("div", { className: `cls ${this.cls}` }));
    const labels = element("div", { className: "labels", "aria-hidden": "true" });
    if (this.labels) for (let row = 0; row < this.rows; row++) labels.append(element("span", {}, this.labels(row)));
    this.element = element(
      "figure",
      { className: "heat" },
      ...(this.caption ? [element("figcaption", {}, this.caption)] : []),
      element("div", { className: "body" }, ...(this.labels ? [labels] : []), this.frame),
    );
    this.listen(listener);
  }

  listen({ show, leave, pick }) {
    const { canvas } = this;
    const move = (event) => {
      const box = canvas.getBoundingClientRect();
      const within = (share, count) => Math.min(Math.max(Math.floor(share * count), 0), count - 1);
      this.place = [
        within((event.clientY - box.top) / box.height, this.rows),
        within((event.clientX - box.left) / box.width, this.columns),
      ];
    };
    canvas.addEventListener("pointermove", (event) => {
      if (event.pointerType === "touch") return; // it scrolls
      move(event);
      show(this, ...this.place);
    });
    canvas.addEventListener("pointerleave", leave);
    canvas.addEventListener("click", (event) => {
      if (event.detail > 0) move(event); // not by a key
      pick(this, ...this.place);
    });
    canvas.addEventListener("focus", () => {
      if (canvas.matches(":focus-visible")) show(this, ...this.place);
    });
    canvas.addEventListener("keydown", (event) => {
      if (event.key in ARROWS) {
        const [down, right] = ARROWS[event.key];
        const [row, column] = this.place;
        this.place = [
          Math.min(Math.max(row + down, 0), this.rows - 1),
          Math.min(Math.max(column + right, 0), this.columns - 1),
        ];
        show(this, ...this.place);
      } else if (event.key === "Enter" || event.key === " ") {
        pick(this, ...this.place);
      } else {
        return;
      }
      event.preventDefault();
      event.stopPropagation(); // arrow keys elsewhere change the step
    });
  }

  draw(value, color) {
    paint(this.canvas, this.rows, this.columns, (row, column) => color(value(...this.at(row, column))));
  }

  /** A box over cells, from [row, column] to [row, column]. */
  mark(className, [top, left], [bottom, right] = [top, left]) {
    const box = element("div", { className });
    box.style.cssText = `--top: ${top}; --left: ${left}; --down: ${bottom - top + 1}; --right: ${right - left + 1}`;
    this.frame.append(box);
    return box;
  }
}
