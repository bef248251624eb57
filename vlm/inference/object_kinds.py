"""Name the kinds of DICOM objects of a draft, without a library."""

OBJECTS = ("sr", "pdf")
"""Kinds that are written by default: Structured Report, Encapsulated PDF."""
ALL_OBJECTS = (*OBJECTS, "sc")
"""All kinds: Secondary Captures of the page too."""
