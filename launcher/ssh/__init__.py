"""Agents on hosts that ssh reaches."""
