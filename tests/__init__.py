"""Tests by area. `harness.py` is what they share; test.py at the root is the contract."""
