"""Collections as they lie on disk, each by its documented layout; docs/readers.md has their field maps."""
