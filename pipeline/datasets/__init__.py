"""Data sets of images, phrases and masks: one file a format, all read lazily through an object store."""
