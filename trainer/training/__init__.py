"""What recipes share while they train: optimiser steps, phases, critics, rollouts and turns."""
