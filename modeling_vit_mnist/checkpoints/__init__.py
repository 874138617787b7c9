"""Checkpoint folders: load and save, model card, push to the Hub, conversion to and from other formats."""
