// The drawing pad: pen and eraser by mouse, finger or keyboard, undo, and pictures in place of a drawing.

const STEP = 10; // pixels of the pad per press of an arrow key
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/**
 * What was done is a list of actions, the last one last: {kind: "stroke", erases, width, points}, {kind: "clear"}, or
 * {kind: "picture", gray, canvas, isInk}. The pad shows the last picture, or the strokes after the last one that is
 * none. A stroke on a picture starts a new drawing.
 */
export class Pad {
  erases = false;
  width = 22; // of the pad's 280 pixels, about the thickness of MNIST's strokes
  #actions = [];
  #stroke = null; // the one that is being drawn
  #position = [140, 140];

  constructor(canvas, cursor, onChange) {
    Object.assign(this, { canvas, cursor, onChange, context: canvas.getContext("2d", { willReadFrequently: true }) });
    this.#paint();
    canvas.addEventListener("pointerdown", (event) => this.#press(event));
    canvas.addEventListener("pointermove", (event) => this.#drag(event));
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => (this.#stroke = null));
    canvas.addEventListener("keydown", (event) => this.#key(event));
    canvas.addEventListener("blur", () => (cursor.hidden = true));
  }

  /** The strokes since the last action that was none. */
  get #strokes() {
    const start = this.#actions.findLastIndex(({ kind }) => kind !== "stroke");
    return this.#actions.slice(start + 1);
  }

  get #shown() {
    const last = this.#actions.at(-1);
    return last?.kind === "picture" ? last : null;
  }

  /** What is to be read, as gray levels {width, height, data}; null if nothing was drawn. */
  get gray() {
    if (this.#shown) return this.#shown.gray;
    if (!this.#strokes.some(({ erases }) => !erases)) return null;
    const { width, height } = this.canvas;
    const { data } = this.context.getImageData(0, 0, width, height);
    return { width, height, data: Uint8Array.from({ length: width * height }, (_, i) => data[4 * i]) };
  }

  /** Whether what is shown is light ink on black, and not a photograph. */
  get isInk() {
    return this.#shown === null || this.#shown.isInk;
  }

  get canUndo() {
    return this.#actions.length > 0;
  }

  /** Show a picture: its gray levels, a canvas with its colors, and whether it is light ink on black as the pad's. */
  show(gray, canvas, isInk = false) {
    this.#act({ kind: "picture", gray, canvas, isInk });
  }

  /** Show a drawing: strokes as lists of points. */
  drawStrokes(strokes) {
    this.clear();
    for (const points of strokes) this.#actions.push({ kind: "stroke", erases: false, width: this.width, points });
    this.#changed();
  }

  clear() {
    if (this.#actions.length && this.#actions.at(-1).kind !== "clear") this.#act({ kind: "clear" });
  }

  undo() {
    this.#stroke = null;
    this.#actions.pop();
    this.#changed();
  }

  #act(action) {
    this.#stroke = null;
    this.#actions.push(action);
    this.#changed();
  }

  #changed() {
    this.#paint();
    this.#moveCursor();
    this.onChange();
  }

  #paint() {
    const { canvas, context } = this;
    context.fillStyle = "#000";
    context.fillRect(0, 0, canvas.width, canvas.height);
    canvas.classList.toggle("ink", this.isInk);
    if (this.#shown) {
      const picture = this.#shown.canvas;
      const scale = Math.min(canvas.width / picture.width, canvas.height / picture.height);
      const [width, height] = [scale * picture.width, scale * picture.height];
      context.imageSmoothingEnabled = scale < 1;
      context.drawImage(picture, (canvas.width - width) / 2, (canvas.height - height) / 2, width, height);
    } else {
      for (const stroke of this.#strokes)
        stroke.points.forEach((point, i) => this.#line(stroke, stroke.points[Math.max(i - 1, 0)], point));
    }
  }

  /** One piece of a stroke. Repainting draws the same pieces, so that the pixels are the same. */
  #line({ erases, width }, from, [x, y]) {
    const { context } = this;
    Object.assign(context, { strokeStyle: erases ? "#000" : "#fff", lineWidth: width, lineCap: "round" });
    context.beginPath();
    context.moveTo(...from);
    context.lineTo(x + 0.01, y); // a line of no length draws no dot
    context.stroke();
  }

  #start() {
    if (this.#shown && this.erases) return; // there is nothing to erase in a picture
    const isNew = this.#shown !== null;
    this.#stroke = { kind: "stroke", erases: this.erases, width: this.width, points: [this.#position] };
    this.#actions.push(this.#stroke);
    if (isNew) this.#paint();
    else this.#line(this.#stroke, this.#position, this.#position);
    this.onChange();
  }

  #moveTo(position) {
    if (this.#stroke) {
      this.#stroke.points.push(position);
      this.#line(this.#stroke, this.#position, position);
      this.onChange();
    }
    this.#position = position;
    this.#moveCursor();
  }

  #moveCursor() {
    const { style, classList } = this.cursor;
    const [left, top] = this.#position.map((at) => `${(100 * at) / this.canvas.width}%`);
    Object.assign(style, { left, top, width: `${(100 * this.width) / this.canvas.width}%` });
    classList.toggle("down", this.#stroke !== null);
  }

  #press(event) {
    if (!event.isPrimary || event.button !== 0) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.cursor.hidden = true; // a mouse or finger shows its own position
    this.#stroke = null;
    this.#moveTo(this.#place(event));
    this.#start();
  }

  #drag(event) {
    if (!this.canvas.hasPointerCapture(event.pointerId)) return;
    const steps = event.getCoalescedEvents?.() ?? [];
    for (const step of steps.length ? steps : [event]) this.#moveTo(this.#place(step));
  }

  /** Position of a pointer in the pad's own pixels. */
  #place(event) {
    const box = this.canvas.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    return [(x * this.canvas.width) / box.width, (y * this.canvas.height) / box.height];
  }

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const within = (at) => Math.min(Math.max(at, 0), this.canvas.width);
    if (event.key in ARROWS) {
      const [x, y] = ARROWS[event.key];
      this.#moveTo([within(this.#position[0] + STEP * x), within(this.#position[1] + STEP * y)]);
    } else if (event.key === " ") {
      if (this.#stroke) this.#stroke = null;
      else this.#start();
      this.#moveCursor();
    } else if (event.key === "Delete" || event.key === "Backspace") {
      this.clear();
    } else {
      return;
    }
    this.cursor.hidden = false;
    event.preventDefault();
  }
}
