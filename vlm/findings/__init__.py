"""Rule-based extraction of findings, negation, uncertainty, side and zone from reports."""
