"""What a report says: findings with their status, side and zone, and the numbers it states."""
