"""What a draft rests on: where in the image, on which vital, and how much the language alone would have said."""
