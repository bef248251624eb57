"""Attribute a draft to places in the image, to vitals, and to the language model alone."""
