"""Images and labels: where they come from, in memory or as a stream, and how training images are augmented."""
