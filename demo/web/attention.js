// Attention, live: choose one of the tokens, and see how much it attends to each token, for every head of every layer.

import { drawInk, element, find, percent, say } from "./dom.js";

/** "CLS", or the patch with its place in the digit. Token 0 is CLS. */
export function nameToken(token, side) {
  if (token === 0) return "CLS";
  return `patch ${token} (row ${Math.ceil(token / side)}, column ${((token - 1) % side) + 1})`;
}

export class AttentionView {
  #chosen = 0; // the token whose attention is shown
  #pointed = null; // the one under the mouse, which is shown meanwhile
  #maps = []; // one for each head of each layer
  #buttons = [];
  #vit = null;
  #shown = { attentions: null, bytes: null };

  constructor() {
    const tokenAt = ({ target }) => target.closest?.("[data-token]")?.dataset.token;
    const root = find("attention");
    root.addEventListener("pointerover", (event) => {
      if (event.pointerType === "mouse") this.#point(tokenAt(event));
    });
    root.addEventListener("pointerleave", () => this.#point());
    root.addEventListener("click", (event) => this.#choose(tokenAt(event)));
    root.addEventListener("focusin", (event) => this.#choose(tokenAt(event)));
    root.addEventListener("keydown", (event) => this.#move(event));
    find("table").addEventListener("toggle", () => this.#showTable());
  }

  /** Empty maps for the heads of a network. */
  build(vit) {
    this.#vit = vit;
    const side = vit.size / vit.patch;
    find("attention").style.setProperty("--side", side);
    find("attention").style.setProperty("--heads", vit.heads);
    this.#chosen = 0;
    this.#pointed = null;

    this.#buttons = Array.from({ length: side * side + 1 }, (_, token) => {
      const title = nameToken(token, side);
      const attributes = { className: "token", type: "button", title, "aria-label": title, "data-token": token };
      return element("button", attributes, element("span", {}, token === 0 ? "CLS" : `${token}`));
    });
    const [first, ...patches] = this.#buttons;
    const picker = element("div", { className: "patches" }, element("canvas", { className: "ink" }), ...patches);
    find("picker").replaceChildren(first, picker);

    this.#maps = Array.from({ length: vit.layers * vit.heads }, (_, i) => {
      const cells = this.#buttons.map((_, token) =>
        element("div", { className: "cell", "data-token": token }, element("span")),
      );
      const canvas = element("canvas", { className: "ink" });
      const patches = element("div", { className: "patches" }, canvas, ...cells.slice(1));
      const picture = element("div", { className: "map" }, cells[0], patches);
      picture.setAttribute("role", "img");
      const [layer, head] = [Math.floor(i / vit.heads), i % vit.heads];
      const figure = element("figure", {}, picture, element("figcaption", {}, `head ${head + 1}`));
      return { layer, head, cells, canvas, picture, figure };
    });
    const rows = Array.from({ length: vit.layers }, (_, layer) => {
      const figures = this.#maps.filter((map) => map.layer === layer).map(({ figure }) => figure);
      return element("div", { className: "layer" }, element("h3", {}, `Layer ${layer + 1}`), ...figures);
    });
    find("maps").replaceChildren(...rows);
  }

  /** The weights [layer][head][from][to] for a framed image of `bytes`, or null if there is no digit. */
  show(attentions, bytes) {
    this.#shown = { attentions, bytes };
    drawInk(find("picker").querySelector("canvas"), bytes, this.#vit.size);
    for (const { canvas } of this.#maps) drawInk(canvas, bytes, this.#vit.size);
    this.#update();
  }

  get #token() {
    return this.#pointed ?? this.#chosen;
  }

  #update() {
    const side = this.#vit.size / this.#vit.patch;
    const { attentions } = this.#shown;
    const from = nameToken(this.#token, side);
    this.#buttons.forEach((button, token) => {
      button.setAttribute("aria-pressed", token === this.#token);
      button.tabIndex = token === this.#chosen ? 0 : -1;
    });
    say(find("from"), from);
    for (const { layer, head, cells, picture } of this.#maps) {
      const shares = attentions?.[layer][head][this.#token];
      cells.forEach((cell, token) => {
        const share = shares?.[token] ?? 0;
        cell.style.setProperty("--level", Math.sqrt(share).toFixed(4)); // the color scale: see the legend
        cell.classList.toggle("strong", share > 0.33);
        cell.classList.toggle("strongest", share > 0.38);
        cell.classList.toggle("from", token === this.#token);
        const number = shares ? `${Math.round(100 * share)}` : "";
        say(cell.firstChild, token === 0 ? `CLS ${number && percent(share, 0)}` : number);
      });
      const most = shares?.map((share, token) => [share, token]).sort(([a], [b]) => b - a).slice(0, 3);
      const list = most?.map(([share, token]) => `${percent(share, 0)} to ${nameToken(token, side)}`).join(", ");
      const own = shares ? ` To CLS ${percent(shares[0], 0)}.` : "";
      const what = list ?? "to nothing yet: draw a digit";
      const label = `Layer ${layer + 1}, head ${head + 1}. ${from} attends ${what}.${own}`;
      if (picture.getAttribute("aria-label") !== label) picture.setAttribute("aria-label", label);
    }
    this.#showTable();
  }

  /** All shares of the chosen token as numbers, while the table is open. */
  #showTable() {
    if (!find("table").open || !this.#vit) return;
    const side = this.#vit.size / this.#vit.patch;
    const head = (text, scope) => {
      const cell = element("th", {}, text);
      cell.scope = scope;
      return cell;
    };
    const heads = this.#maps.map(({ layer, head: number }) => head(`layer ${layer + 1}, head ${number + 1}`, "col"));
    const rows = this.#buttons.map((_, token) => {
      const shares = this.#maps.map(({ layer, head: number }) => {
        const share = this.#shown.attentions?.[layer][number][this.#token][token];
        return element("td", {}, share === undefined ? "–" : percent(share));
      });
      return element("tr", {}, head(nameToken(token, side), "row"), ...shares);
    });
    find("table").querySelector("table").replaceChildren(
      element("caption", {}, `Attention from ${nameToken(this.#token, side)} to each token`),
      element("thead", {}, element("tr", {}, head("to", "col"), ...heads)),
      element("tbody", {}, ...rows),
    );
  }

  #point(token) {
    const pointed = token === undefined ? null : Number(token);
    if (pointed === this.#pointed || !this.#vit) return;
    this.#pointed = pointed;
    this.#update();
  }

  #choose(token) {
    if (token === undefined) return;
    this.#chosen = Number(token);
    this.#pointed = null;
    this.#update();
  }

  /** Arrow keys move among the tokens of the picker: CLS lies above the patches. */
  #move(event) {
    const side = this.#vit ? this.#vit.size / this.#vit.patch : 0;
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -side, ArrowDown: this.#chosen ? side : 1 };
    if (!(event.key in steps) || !find("picker").contains(event.target)) return;
    event.preventDefault();
    const next = this.#chosen + steps[event.key];
    if (next < this.#buttons.length) this.#buttons[Math.max(next, 0)].focus();
  }
}
