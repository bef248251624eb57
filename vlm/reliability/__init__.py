"""Judge how far a draft and its probabilities can be relied on, by thresholds that an adapter keeps."""
