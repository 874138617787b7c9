// Reads a checkpoint folder of the table: the network and its processor's settings, and the results of its training.

import { CHECKPOINTS } from "./checkpoint_table.js";
import { Vit, parseSafetensors } from "./vit.js";

export { CHECKPOINTS };
export const MOST_SHOWN = 5000; // parameters of a network that network.html shows

async function fetchFile(name, file) {
  const address = `${CHECKPOINTS[name].folder}/${file}`;
  const response = await fetch(address, { cache: "no-cache" }).catch(() => {
    throw new Error(`no answer from the server for ${address}`);
  }); // no-cache: the weights may have changed
  if (!response.ok) throw new Error(`${address}: ${response.status} ${response.statusText}`);
  return response;
}

/** {name, config, vit, mean, std, deskews} of a checkpoint: the network, and what to do with a framed image before. */
export async function loadNetwork(name) {
  const [config, processor, weights] = await Promise.all([
    fetchFile(name, "config.json").then((response) => response.json()),
    fetchFile(name, "preprocessor_config.json").then((response) => response.json()),
    fetchFile(name, "model.safetensors").then((response) => response.arrayBuffer()),
  ]);
  const first = (value) => (Array.isArray(value) ? value[0] : value);
  return {
    name,
    config,
    vit: new Vit(config, parseSafetensors(weights)),
    mean: first(processor.image_mean),
    std: first(processor.image_std),
    deskews: processor.do_deskew,
  };
}

/** The record of a finished training, all_results.json. */
export async function loadResults(name) {
  return (await fetchFile(name, "all_results.json")).json();
}
