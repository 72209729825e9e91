"""Code that recipes share for training: optimiser steps, phases, critics, rollouts and turns."""
