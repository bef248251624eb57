"""What a trained model can and cannot do, measured on cases it never saw."""
