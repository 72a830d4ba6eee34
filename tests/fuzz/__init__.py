"""Checks that run for as long as one lets them; CI runs a slice of each, in the usual tests."""
