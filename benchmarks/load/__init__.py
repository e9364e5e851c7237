"""Load on a running service: users who ask, and some who send documents meanwhile."""
