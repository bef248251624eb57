"""Cases: tables, images, vitals, splits and batches. Knows nothing of the model."""
