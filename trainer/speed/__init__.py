"""Speed and memory of training: precision, attention, matrix products, allocator, sharding."""
