"""Data pipeline: tables, images, vitals, splits and batches. It does not depend on the model."""
