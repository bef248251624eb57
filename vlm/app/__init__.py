"""Serve the adapter in a browser and over HTTP, in one process."""
