"""Measurements that a user can repeat; every figure in the documentation is printed by one of these."""
