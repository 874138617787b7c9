// Links to the network view: network.html#model=tiny&image=BASE64URL&step=1. The image is 28x28 bytes, ink = 255.

import { CHECKPOINTS } from "./checkpoints.js";

const PIXELS = 28 * 28;

export function encodeImage(bytes) {
  return btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

/** Bytes of an image in base64url without padding. Throws an Error with a sentence. */
export function decodeImage(text) {
  let bytes;
  try {
    bytes = Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), (letter) => letter.charCodeAt(0));
  } catch {
    throw new Error("The image in this link is not base64url.");
  }
  const { length } = bytes;
  if (length !== PIXELS) throw new Error(`The image in this link has ${length} bytes instead of ${PIXELS}.`);
  return bytes;
}

/** The part of a link behind #. Steps count from 1; 0 is none. */
export function encodeLink({ model, image, step }) {
  return `model=${model}&image=${encodeImage(image)}${step ? `&step=${step}` : ""}`;
}

/** {model, image, step, problems}: what the link does not carry, or not correctly, is null. Problems are sentences. */
export function decodeLink(hash) {
  const fields = new URLSearchParams(hash.replace(/^#/, ""));
  const problems = [];
  const read = (name, parse) => {
    if (!fields.has(name)) return null;
    try {
      return parse(fields.get(name));
    } catch (error) {
      problems.push(error.message);
      return null;
    }
  };
  const model = read("model", (name) => {
    if (!Object.hasOwn(CHECKPOINTS, name)) {
      const names = Object.keys(CHECKPOINTS).join(", ");
      throw new Error(`This link names the network '${name.slice(0, 40)}', which is none of ${names}.`);
    }
    return name;
  });
  const image = read("image", decodeImage);
  const step = read("step", (text) => {
    if (/^[1-9][0-9]{0,2}$/.test(text)) return Number(text);
    throw new Error(`This link names the step '${text.slice(0, 40)}', which is not a number.`);
  });
  return { model, image, step, problems };
}
