"""What is measured of a policy: figures by slice, beside the policy before it, and suites."""
