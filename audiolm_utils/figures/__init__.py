"""House style and every figure of the presentation."""
