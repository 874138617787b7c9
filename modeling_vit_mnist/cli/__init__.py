"""Arguments and recipes, one-line errors, files written completely, packaged files. Imports no other subpackage."""
