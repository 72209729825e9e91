"""The page of a project's audit log: who did what, and when."""
