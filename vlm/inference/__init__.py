"""Draft reports with a trained adapter."""
