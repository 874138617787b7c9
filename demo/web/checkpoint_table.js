// The checkpoints of the page: name to folder, relative to the page. `run_export.py --format space` writes its own.
export const CHECKPOINTS = {
  tiny: { folder: "../../vit-mnist-tiny" },
  best: { folder: "../../vit-mnist-best" },
  small: { folder: "../../vit-mnist-small" },
};
