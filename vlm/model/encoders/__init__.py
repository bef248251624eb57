"""Image encoders: one file for each library, behind `Encoder`."""
