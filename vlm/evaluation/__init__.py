"""Evaluate a trained model on unseen cases."""
