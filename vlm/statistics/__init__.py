"""Estimate measures of numbers, with intervals: no model, no data set, no report."""
