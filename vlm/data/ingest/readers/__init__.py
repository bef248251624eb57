"""Read public collections in their documented on-disk layouts; docs/readers.md has their field maps."""
