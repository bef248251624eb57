"""From a trained adapter to drafted reports."""
