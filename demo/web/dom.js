// Small helpers for the page's elements.

export const find = (id) => document.getElementById(id);

/** A new element with these attributes and children. */
export function element(tag, options = {}, ...children) {
  const { className = "", ...attributes } = options;
  const made = document.createElement(tag);
  if (className) made.className = className;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** Set a text, if it is new: screen readers read some of them aloud when they are set. */
export function say(target, text) {
  if (target.textContent !== text) target.textContent = text;
}

/** Draw gray levels as white ink of that opacity. CSS inverts canvases of the class "ink" on a light page. */
export function drawInk(canvas, bytes, width, height = bytes.length / width) {
  if (canvas.width !== width) canvas.width = width;
  if (canvas.height !== height) canvas.height = height;
  const image = new ImageData(width, height);
  bytes.forEach((byte, i) => image.data.set([255, 255, 255, byte], 4 * i));
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/** A number as text, with a minus sign as wide as a plus. */
export const signed = (x, decimals = 2) => x.toFixed(decimals).replace("-", "−");

/** A share as text, in percent with so many decimals. */
export const percent = (share, decimals = 1) => `${(100 * share).toFixed(decimals)} %`;
