"""The Progress page: whether rounds make the policy better, what got worse, and any two rounds beside each other."""
