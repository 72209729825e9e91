"""The Progress page: whether rounds improve the policy, what got worse, and any two rounds side by side."""
