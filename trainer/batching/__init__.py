"""From stored rows to token ids in rows for a forward pass."""
