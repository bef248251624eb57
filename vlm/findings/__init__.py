"""What a report says: findings, negation, uncertainty, side and zone, read by rule."""
