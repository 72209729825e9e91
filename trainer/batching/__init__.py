"""Reading, encoding and packing: stored rows become token ids for a forward pass."""
