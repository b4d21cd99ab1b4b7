"""Policies: methods that make a cache graph without router training."""
