"""Offer an adapter to other libraries in their own terms; none of them is imported before it is asked for."""
