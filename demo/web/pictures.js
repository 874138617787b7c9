// Pictures from files, the clipboard, drag and drop, and the camera.

import { find } from "./dom.js";
import { toGray } from "./frame.js";

const LONGEST_SIDE = 2048; // pixels: larger pictures are shrunk first
const LEAST_RANGE = 32; // of the gray levels of something that is drawn on transparency, of 255

/**
 * The gray levels {width, height, data} of a file or a video frame, as the image processor computes them, and a canvas
 * with its colors. Transparent pixels are white, as paper is, or black where nothing can be seen on white.
 */
export async function readPicture(source) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(source);
  } catch {
    const name = source.name ? `“${source.name}”` : "This";
    throw new Error(`${name} cannot be read as a picture. Try a PNG, JPEG or WebP file.`);
  }
  const scale = Math.min(1, LONGEST_SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(scale * bitmap.width));
  canvas.height = Math.max(1, Math.round(scale * bitmap.height));
  const context = canvas.getContext("2d", { willReadFrequently: true });
  /** Draw it on a paper, and say whether nothing can be seen there. */
  const drawOn = (paper) => {
    context.fillStyle = paper;
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    return isBlank(context.getImageData(0, 0, canvas.width, canvas.height));
  };
  // What is nearly white and drawn on transparency is seen on black.
  if (drawOn("#fff") && drawOn("#000")) drawOn("#fff");
  bitmap.close();
  return { canvas, gray: readGray(canvas) };
}

/** Whether red, green and blue hardly change in pixels, of four bytes each. */
function isBlank({ data }) {
  const [low, high] = [new Uint8Array(4).fill(255), new Uint8Array(4)];
  for (let i = 0; i < data.length; i++) {
    low[i % 4] = Math.min(low[i % 4], data[i]);
    high[i % 4] = Math.max(high[i % 4], data[i]);
  }
  return high.every((level, color) => level - low[color] < LEAST_RANGE);
}

/** What is read of a canvas: its gray levels. */
export const readGray = (canvas) => toGray(canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height));

const pictureIn = (list) => [...(list ?? [])].find((file) => file.type.startsWith("image/")) ?? list?.[0];

/** Call `onPicture(canvas, gray)` for each picture that the user gives, and `onProblem(text)` where that fails. */
export function watchPictures(onPicture, onProblem) {
  async function take(source) {
    if (!source) return;
    try {
      const { canvas, gray } = await readPicture(source);
      onPicture(canvas, gray);
    } catch (error) {
      onProblem(error.message);
    }
  }

  for (const input of [find("file"), find("capture")])
    input.addEventListener("change", async () => {
      await take(input.files[0]);
      input.value = ""; // the same file can be chosen again
    });
  find("upload").addEventListener("click", () => find("file").click());

  document.addEventListener("paste", (event) => {
    const file = pictureIn(event.clipboardData?.files);
    if (file) take(file);
    else onProblem("The clipboard holds no picture.");
  });
  find("paste").hidden = !navigator.clipboard?.read;
  find("paste").addEventListener("click", async () => {
    try {
      const items = await navigator.clipboard.read();
      const item = items.find(({ types }) => types.some((type) => type.startsWith("image/")));
      if (item) await take(await item.getType(item.types.find((type) => type.startsWith("image/"))));
      else onProblem("The clipboard holds no picture.");
    } catch {
      onProblem("The browser does not let this page read the clipboard. Press Ctrl+V instead.");
    }
  });

  const mark = (isOver) => document.body.classList.toggle("dropping", isOver);
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    mark(true);
  });
  document.addEventListener("dragleave", (event) => !event.relatedTarget && mark(false));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    mark(false);
    const file = pictureIn(event.dataTransfer?.files);
    if (file) take(file);
    else onProblem("What was dropped is no picture file.");
  });

  watchCamera(take, onProblem);
}

function watchCamera(take, onProblem) {
  const [dialog, video] = [find("camera-dialog"), find("video")];
  find("camera").addEventListener("click", async () => {
    if (!navigator.mediaDevices) return find("capture").click(); // without https, only a phone's own camera app
    try {
      const wanted = { video: { facingMode: "environment", width: { ideal: 1280 } } };
      video.srcObject = await navigator.mediaDevices.getUserMedia(wanted);
      dialog.showModal();
      await video.play();
    } catch (error) {
      dialog.close();
      onProblem(`The camera cannot be used (${error.message}). Upload a photo instead.`);
    }
  });
  find("shoot").addEventListener("click", async () => {
    await take(video);
    dialog.close();
  });
  find("cancel-camera").addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => {
    for (const track of video.srcObject?.getTracks() ?? []) track.stop();
    video.srcObject = null;
  });
}
