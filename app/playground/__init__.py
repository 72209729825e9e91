"""The playground: staff talk to two models of a project side by side, blind or not."""
