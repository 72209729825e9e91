"""What makes training fast or small: precision, attention, matrix products, memory, sharding."""
